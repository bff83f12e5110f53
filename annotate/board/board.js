// The ranking page: what is shown, what the annotator does, what is saved. Given by Gradio: `element`, our root's parent.
const DRAFT_AFTER_MS = 600;

const root = element.querySelector('.board');
const part = selector => root.querySelector(selector);
const notationField = part('.notation');
const note = notePanel(part('.note'));
const attempts = attemptKeys();

const state = {
  projects: [], project: null, progress: null, task: null,
  places: [], past: [], typing: false, tieNext: false, comment: '',
  busy: false, shownAt: 0, drawer: '', draftTimer: 0, draftChanged: false,
};

const responseCount = () => state.task?.cards.length || 0;

// Loading and showing

async function start() {
  translate(root);
  wire();
  await loadProjects();
}

async function loadProjects() {
  try {
    state.projects = (await askServer('projects')).projects;
    const wanted = new URLSearchParams(location.search).get('project') || localStorage.getItem('rankwise.project');
    const known = state.projects.find(p => String(p.id) === wanted || p.name === wanted) || state.projects[0];
    drawProjects(known);
    if (known) await loadTask(known.id);
    else showNothing('noProject', 'noProjectHint', [dataLink()]);
  } catch (error) {
    failedToLoad(error, loadProjects);
  }
}

async function loadTask(project, prompt = null) {
  await saveDraft();
  try {
    show(await askServer(`task?project=${project}${prompt === null ? '' : `&prompt=${prompt}`}`));
  } catch (error) {
    failedToLoad(error, () => loadTask(project, prompt));
  }
}

function failedToLoad(error, again) {
  if (!(error instanceof ServerError)) throw error;
  if (state.task) return complain(error.message);
  showNothing('loadFailed', '', [wayOut('tryAgain', again)], error.message);
}

/** A new state of the page from the server: another task, or none. */
function show(view) {
  clearTimeout(state.draftTimer);
  Object.assign(state, { project: view.project, progress: view.progress, task: view.task, draftChanged: false });
  Object.assign(state, { places: [], past: [], typing: false, tieNext: false, comment: view.task?.comment || '' });
  state.shownAt = performance.now();
  note.cancel();
  rememberProject();
  for (const line of ['.problem', '.notice', '.saved']) part(line).textContent = '';
  notationField.removeAttribute('aria-invalid');
  drawProgress();
  drawTask();
  if (state.task) restoreDraft(view.task.draft);
  else showFinished();
  if (state.drawer) openDrawer(state.drawer);
  window.scrollTo(0, 0);
}

function restoreDraft(draft) {
  try {
    state.places = parseNotation(draft, responseCount());
    drawRanking();
  } catch (error) {
    drawRanking();
    notationField.value = draft;
    complainAboutNotation(error);
  }
}

function rememberProject() {
  const id = String(state.project.id);
  localStorage.setItem('rankwise.project', id);
  part('.project').value = id;
  const address = new URL(location.href);
  address.searchParams.set('project', id);
  history.replaceState(history.state, '', address);
}

// Messages

function complain(sentence) {
  part('.problem').textContent = sentence;
  if (sentence) part('.notice').textContent = '';
  notationField.removeAttribute('aria-invalid');
}

function complainAboutNotation(error) {
  if (!(error instanceof NotationError)) throw error;
  complain(say('problemPlace', { place: error.place, rule: say(error.message, error.values) }));
  notationField.setAttribute('aria-invalid', 'true');
}

function notify(sentence) {
  part('.notice').textContent = sentence;
}

function speak(sentence) {
  part('.spoken').textContent = sentence;
}

// Changing the ranking

function change(places, { typing = false } = {}) {
  if (!state.task || state.busy) return;
  if (!(typing && state.typing)) state.past.push(state.places);
  Object.assign(state, { places, typing, tieNext: false });
  complain('');
  notify('');
  drawRanking();
  speak(formatPlaces(places) || say('badgeUnranked'));
  keepDraft();
}

function choose(number) {
  if (number > responseCount()) return;
  change(state.tieNext ? tiedWithLast(state.places, number) : toggled(state.places, number));
}

function toggleTie() {
  if (!tiersOf(state.places).length) return;
  state.tieNext = !state.tieNext;
  drawRanking();
  if (state.tieNext) speak(say('tieNext'));
}

function move(what, step) {
  change(shifted(state.places, what, step));
  part(`.lanes [data-drag="${what}"]`)?.focus();
}

function readNotation() {
  try {
    change(parseNotation(notationField.value, responseCount()), { typing: true });
  } catch (error) {
    complainAboutNotation(error);
    keepDraft();
  }
}

// Saving

function keepDraft() {
  state.draftChanged = true;
  clearTimeout(state.draftTimer);
  state.draftTimer = setTimeout(saveDraft, DRAFT_AFTER_MS);
}

async function saveDraft({ leaving = false } = {}) {
  clearTimeout(state.draftTimer);
  if (!state.task || !state.draftChanged || state.busy) return;
  state.draftChanged = false;
  const { prompt } = state.task;
  const ranking = notationField.hasAttribute('aria-invalid') ? notationField.value : formatPlaces(state.places);
  const draft = { project: state.project.id, prompt, ranking, comment: state.comment };
  let outcome = 'draftSaved';
  try {
    state.savingDraft = askServer('draft', draft, { keepalive: leaving });
    await state.savingDraft;
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    outcome = 'draftNotSaved';
    state.draftChanged = true;
  }
  if (state.task?.prompt === prompt && !state.busy) part('.saved').textContent = say(outcome);
}

/** Runs one request that moves the page on; a second one waits for nothing, it is ignored. */
async function exclusively(work) {
  if (state.busy || !state.project) return;
  state.busy = true;
  clearTimeout(state.draftTimer);
  part('[data-do=submit]').disabled = true;
  try {
    await Promise.allSettled([state.savingDraft]); // a draft that arrived later would outlive the submit
    await work();
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    const refused = error.status >= 400 && error.status < 500;
    complain(refused ? error.message : say('notSaved', { reason: error.message }));
  } finally {
    state.busy = false;
    part('[data-do=submit]').disabled = false;
  }
}

function submitRanking() {
  if (!state.task || state.busy) return undefined;
  if (notationField.hasAttribute('aria-invalid')) return notationField.focus();
  if (!tiersOf(state.places).length) return complain(say('emptyRanking'));
  return decide({ status: 'ranked', ranking: formatPlaces(state.places), reason: '' });
}

async function setAside(purpose, status) {
  if (!state.task || state.busy) return;
  if (note.purpose === purpose) return note.cancel();
  const reason = await note.ask(purpose);
  if (reason === null) return;
  if (status === 'flagged' && !reason.trim()) {
    complain(say('reasonNeeded'));
    return setAside(purpose, status);
  }
  await decide({ status, ranking: '', reason });
}

function decide(judgement) {
  return exclusively(async () => {
    const { prompt, revision } = state.task;
    const decision = { project: state.project.id, prompt, revision, comment: state.comment, ...judgement };
    const seconds = Math.round((performance.now() - state.shownAt) / 100) / 10;
    try {
      const left = unrankedOf(state.places, responseCount());
      const answer = await askServer('submit', { ...decision, key: attempts.keyFor(decision), seconds });
      attempts.answered();
      show(answer);
      notify(receiptText(answer.receipt, left));
    } catch (error) {
      if (error.status !== 409) throw error;
      attempts.answered();
      await reloadAfterConflict(error);
    }
  });
}

function receiptText(receipt, left) {
  const parts = [{ skipped: say('skippedNow'), flagged: say('flaggedNow') }[receipt.status] || say('saved', receipt)];
  if (receipt.status === 'ranked' && left.length) parts.push(say('left', { labels: left.map(n => `A${n}`).join(', ') }));
  return [...parts, say('undoHint')].join(' · ');
}

/** Another tab was faster: show the task as it is now, with this tab's work laid over it. */
async function reloadAfterConflict(error) {
  const mine = { places: state.places, comment: state.comment };
  show(await askServer(`task?project=${state.project.id}&prompt=${state.task.prompt}`));
  Object.assign(state, mine);
  drawRanking();
  complain(`${error.message} ${say('conflictKept')}`);
}

async function undo() {
  if (state.past.length) {
    Object.assign(state, { places: state.past.pop(), typing: false, tieNext: false });
    complain('');
    drawRanking();
    speak(formatPlaces(state.places) || say('badgeUnranked'));
    return keepDraft();
  }
  await saveDraft();
  return exclusively(async () => {
    const request = { project: state.project.id };
    const answer = await askServer('undo', { ...request, key: attempts.keyFor(request) });
    attempts.answered();
    if (answer.undone) show(answer);
    notify(say(answer.undone ? 'undone' : 'nothingToUndo'));
  });
}

async function editComment() {
  if (!state.task) return;
  if (note.purpose === 'comment') return note.cancel();
  const text = await note.ask('comment', state.comment);
  if (text === null || text === state.comment) return;
  state.comment = text;
  drawRanking();
  keepDraft();
}

// The drawer

async function openDrawer(which) {
  state.drawer = which;
  root.dataset.drawer = which;
  part('.drawer').hidden = false;
  part('.drawer h2').textContent = say(which);
  for (const name of ['guidelines', 'history', 'help']) {
    part(`[data-do=${name}]`).setAttribute('aria-expanded', String(name === which));
  }
  const content = await drawerContent(which);
  if (state.drawer === which) part('.drawer-body').replaceChildren(...content);
}

async function drawerContent(which) {
  if (which === 'help') return helpContent();
  if (which === 'guidelines') return guidelinesContent(state.project?.guidelines);
  if (!state.project) return historyContent([], null, null);
  try {
    const { entries } = await askServer(`history?project=${state.project.id}`);
    return historyContent(entries, state.task?.prompt, prompt => loadTask(state.project.id, prompt));
  } catch (error) {
    if (!(error instanceof ServerError)) throw error;
    return [make('p', '', error.message)];
  }
}

function closeDrawer() {
  const opener = part(`[data-do=${state.drawer}]`);
  state.drawer = '';
  delete root.dataset.drawer;
  part('.drawer').hidden = true;
  for (const name of ['guidelines', 'history', 'help']) part(`[data-do=${name}]`).setAttribute('aria-expanded', 'false');
  opener?.focus({ preventScroll: true });
}

const toggleDrawer = which => (state.drawer === which ? closeDrawer() : openDrawer(which));

function switchLanguage() {
  language = language === 'en' ? 'zh' : 'en';
  localStorage.setItem('rankwise.language', language);
  saveDraft();
  translate(root);
  if (state.progress) drawProgress();
  if (state.task) {
    drawTask();
    drawRanking();
  } else if (state.progress) showFinished();
  else loadProjects();
  if (state.drawer) openDrawer(state.drawer);
}

// Mouse, finger and keyboard

const ACTIONS = {
  guidelines: () => toggleDrawer('guidelines'), history: () => toggleDrawer('history'), help: () => toggleDrawer('help'),
  close: closeDrawer, language: switchLanguage, next: () => loadTask(state.project.id),
  tie: toggleTie, undo, comment: editComment, skip: () => setAside('skip', 'skipped'), flag: () => setAside('flag', 'flagged'),
  submit: submitRanking, cancelNote: () => note.cancel(),
};

const KEYS = {
  '=': toggleTie, u: undo, Backspace: undo, s: ACTIONS.skip, f: ACTIONS.flag, c: editComment, g: ACTIONS.guidelines,
  h: ACTIONS.history, '?': ACTIONS.help, '/': () => notationField.select(),
  b: () => change(barToggled(state.places)), '|': () => change(barToggled(state.places)),
};

function onClick(event) {
  const doer = event.target.closest('[data-do]');
  if (doer) {
    if (event.detail) doer.blur(); // after a mouse click, Enter submits instead of pressing the button again
    return ACTIONS[doer.dataset.do]();
  }
  const held = event.target.closest('.chip, .bar');
  if (!held) return undefined;
  if (held.dataset.drag !== BAR) return choose(Number(held.dataset.drag));
  return change(state.places.includes(BAR) ? takenOut(state.places, BAR) : barToggled(state.places));
}

function onKey(event) {
  if (!element.isConnected) return document.removeEventListener('keydown', onKey); // Gradio has no teardown hook
  if (event.isComposing || event.keyCode === 229 || event.ctrlKey || event.metaKey || event.altKey) return undefined;
  const { target, key } = event;
  if (target === notationField) return onKeyInNotation(event);
  if (target.closest?.('input, textarea, select, [contenteditable=true]')) return undefined;
  const held = target.closest?.('[data-drag]');
  if (key === 'Enter' && !held && target.closest?.('button, a, summary')) return undefined;
  const action = heldAction(held, key) || plainAction(event);
  if (!action) return undefined;
  event.preventDefault();
  return action();
}

/** Arrows and Space act on the chip or bar that has the focus. */
function heldAction(held, key) {
  if (!held) return null;
  const what = held.dataset.drag === BAR ? BAR : Number(held.dataset.drag);
  if (key === 'ArrowLeft' || key === 'ArrowUp') return () => move(what, -1);
  if (key === 'ArrowRight' || key === 'ArrowDown') return () => move(what, 1);
  if (key === ' ') return () => held.click();
  return null;
}

function plainAction({ key, repeat }) {
  if (key === 'Escape') return state.drawer ? closeDrawer : null;
  if (key === 'Enter') return repeat ? () => {} : submitRanking;
  if (/^[1-9]$/.test(key)) return () => choose(Number(key));
  if (repeat && (key === 'u' || key === 'Backspace') && !state.past.length) return () => {};
  return Object.hasOwn(KEYS, key) ? KEYS[key] : null;
}

function onKeyInNotation(event) {
  if (event.key === 'Enter') {
    event.preventDefault();
    if (!notationField.hasAttribute('aria-invalid')) notationField.blur();
    submitRanking();
  } else if (event.key === 'Escape') {
    notationField.blur();
  }
}

function wire() {
  root.addEventListener('click', onClick);
  document.addEventListener('keydown', onKey);
  enableDragging(root, (what, target) => change(dropped(state.places, what, target)));
  notationField.addEventListener('input', event => { if (!event.isComposing) readNotation(); });
  notationField.addEventListener('compositionend', readNotation);
  notationField.addEventListener('blur', () => { state.typing = false; });
  part('.project').addEventListener('change', async event => {
    event.target.blur();
    await loadTask(Number(event.target.value));
  });
  window.addEventListener('pagehide', () => saveDraft({ leaving: true }));
}

start();
