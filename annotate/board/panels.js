// The drawer (guidelines, history, help) and the note panel (comment, reasons), without knowing what they are used for.

function make(tag, className = '', text = '') {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
}

/** The server's sanitised HTML, its few own words in the language of the page. */
function fillWithHtml(node, safeHtml) {
  node.innerHTML = safeHtml;
  node.dir = 'auto';
  for (const empty of node.querySelectorAll('.empty-response')) empty.textContent = say('emptyResponse');
  for (const summary of node.querySelectorAll('summary[data-chars]')) {
    summary.textContent = say('showRest', { count: Number(summary.dataset.chars).toLocaleString(language) });
  }
}

function translate(root) {
  for (const node of root.querySelectorAll('[data-text]')) node.textContent = say(node.dataset.text);
  for (const node of root.querySelectorAll('[data-label]')) node.setAttribute('aria-label', say(node.dataset.label));
  root.querySelector('.language').textContent = say('otherLanguage');
  root.lang = language;
}

function helpContent() {
  const table = make('table', 'keys');
  for (const [keys, meaning] of STRINGS[language].helpRows) {
    const row = table.insertRow();
    row.append(make('th', '', keys), make('td', '', meaning));
    row.firstChild.scope = 'row';
  }
  return [table, make('p', '', say('helpDrag'))];
}

function guidelinesContent(guidelines) {
  if (!guidelines) return [make('p', '', say('noGuidelines'))];
  const body = make('div', 'rendered prose');
  fillWithHtml(body, guidelines);
  return [body];
}

/** The annotator's decisions as a list of buttons; `open` gets the prompt of the chosen one. */
function historyContent(entries, currentPrompt, open) {
  if (!entries.length) return [make('p', '', say('noHistory'))];
  const list = make('ol', 'history');
  for (const entry of entries) {
    const button = make('button');
    button.type = 'button';
    if (entry.prompt === currentPrompt) button.setAttribute('aria-current', 'true');
    const outcome = make('span', `outcome ${entry.status}`, entry.ranking || statusWord(entry.status));
    const when = make('time', '', new Date(entry.at).toLocaleString(language, { dateStyle: 'short', timeStyle: 'short' }));
    const text = make('span', 'asked', entry.text);
    text.dir = 'auto';
    button.append(outcome, when, text);
    button.addEventListener('click', () => open(entry.prompt));
    const item = make('li');
    item.append(button);
    list.append(item);
  }
  return [list];
}

function statusWord(status) {
  return say({ ranked: 'statusRanked', skipped: 'statusSkipped', flagged: 'statusFlagged' }[status] || 'statusOpen');
}

/** One small form that asks for a text: Enter confirms, Shift+Enter breaks the line, Escape cancels. */
function notePanel(form) {
  const field = form.querySelector('textarea');
  let asked = null;
  const close = confirmed => {
    if (!asked) return;
    const { resolve } = asked;
    asked = null;
    form.hidden = true;
    field.blur(); // a hidden field keeps the focus for a moment, and would swallow the next key
    resolve(confirmed ? field.value : null);
  };
  form.addEventListener('submit', event => { event.preventDefault(); close(true); });
  field.addEventListener('keydown', event => {
    if (!asked || event.isComposing || event.keyCode === 229) return;
    if (event.key === 'Escape') close(false);
    else if (event.key === 'Enter' && !event.shiftKey) close(true);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return {
    cancel: () => close(false),
    get purpose() { return asked?.purpose || ''; },
    /** The text that was given, or null when cancelled. */
    ask(purpose, text = '') {
      close(false);
      form.hidden = false;
      form.dataset.purpose = purpose;
      form.querySelector('label span').textContent = say(`${purpose}Label`);
      form.querySelector('[type=submit] span').textContent = say(`${purpose}Confirm`);
      field.value = text;
      field.focus();
      return new Promise(resolve => { asked = { purpose, resolve }; });
    },
  };
}
