// What the state looks like: progress, prompt, cards, the two lanes. Reads the state, changes only the page.

function drawProjects(chosen) {
  const select = part('.project');
  select.replaceChildren(...state.projects.map(p => new Option(p.name, p.id, false, p.id === chosen?.id)));
  select.hidden = !state.projects.length;
}

function drawProgress() {
  const { total, ranked, skipped, flagged } = state.progress;
  const share = count => `${total ? (100 * count) / total : 0}%`;
  part('.counts').textContent = say('counts', state.progress);
  part('.track .done').style.width = share(ranked);
  part('.track .aside').style.width = share(skipped + flagged);
  const track = part('.track');
  track.setAttribute('aria-valuemax', total);
  track.setAttribute('aria-valuenow', ranked + skipped + flagged);
  track.setAttribute('aria-valuetext', say('counts', state.progress));
}

function drawTask() {
  root.dataset.state = state.task ? 'task' : 'nothing';
  part('.nothing').hidden = Boolean(state.task);
  const messages = state.task?.messages || [];
  part('.conversation').replaceChildren(...messages.map(drawMessage));
  part('.cards').replaceChildren(...(state.task?.cards || []).map(drawCard));
  part('.cards').dataset.count = responseCount();
  const reopened = state.task && state.task.status !== 'open';
  part('.reopened').hidden = !reopened;
  if (!state.task) return;
  if (reopened) part('.reopened span').textContent = say('reopened', { answer: state.task.answer || statusWord(state.task.status) });
  part('.conversation').scrollTop = part('.conversation').scrollHeight;
  const position = state.progress.total - state.progress.left + (reopened ? 0 : 1);
  speak(say('live', { position, total: state.progress.total, count: responseCount() }));
}

function drawMessage(message) {
  const turn = make('article', `turn ${message.role}`);
  const body = make('div', 'rendered prose');
  fillWithHtml(body, message.html);
  turn.append(make('h2', 'role', say(message.role)), body);
  return turn;
}

function drawCard(safeHtml, at) {
  const card = make('article', 'card');
  const head = make('header');
  head.dataset.drag = at + 1;
  head.append(makeChip(at + 1), make('span', 'badge'));
  const body = make('div', 'rendered prose');
  fillWithHtml(body, safeHtml);
  body.tabIndex = 0;
  body.setAttribute('role', 'group');
  body.setAttribute('aria-label', say('response', { n: at + 1 }));
  card.append(head, body);
  return card;
}

function makeChip(number) {
  const chip = make('button', 'chip', `A${number}`);
  chip.type = 'button';
  chip.dataset.drag = number;
  chip.setAttribute('aria-label', chipLabel(number));
  return chip;
}

function chipLabel(number) {
  const tiers = tiersOf(state.places);
  const rank = tiers.findIndex(tier => tier.includes(number)) + 1;
  const name = !rank ? 'chipUnranked' : tiers[rank - 1].length > 1 ? 'chipTied' : 'chipRanked';
  return say(name, { n: number, rank, ranks: tiers.length });
}

function makeBar() {
  const bar = make('button', 'bar');
  bar.type = 'button';
  bar.dataset.drag = BAR;
  const at = state.places.indexOf(BAR);
  if (at < 0) {
    bar.append(make('span', '', say('bar')), ' ', make('kbd', '', 'b'));
    bar.title = say('barHint');
    return bar;
  }
  const count = places => tiersOf(places).flat().length;
  bar.append(make('span', 'good', `✓ ${say('acceptable')}`), make('span', 'line'), make('span', 'bad', `${say('unacceptable')} ✗`));
  bar.setAttribute('aria-label', say('barPlaced', { good: count(state.places.slice(0, at)), bad: count(state.places.slice(at)) }));
  return bar;
}

/** Everything that depends on the ranking. The focused chip or bar keeps the focus although it is made anew. */
function drawRanking() {
  const focused = document.activeElement?.closest('.lanes [data-drag]')?.dataset.drag;
  drawTiers();
  const pool = unrankedOf(state.places, responseCount()).map(makeChip);
  if (!pool.length) pool.push(make('span', 'hint', say('allRanked')));
  if (!state.places.includes(BAR)) pool.push(makeBar());
  part('.pool').replaceChildren(...pool);
  drawBadges();
  if (document.activeElement !== notationField) notationField.value = formatPlaces(state.places);
  part('[data-do=tie]').setAttribute('aria-pressed', state.tieNext);
  part('[data-do=submit]').disabled = state.busy;
  part('[data-do=comment]').classList.toggle('filled', Boolean(state.comment));
  root.classList.toggle('tie-next', state.tieNext);
  if (focused) part(`.lanes [data-drag="${focused}"]`)?.focus();
}

function drawTiers() {
  const bar = state.places.indexOf(BAR);
  const strip = [makeGap(0)];
  let rank = 0;
  state.places.forEach((place, at) => {
    if (place === BAR) strip.push(makeBar());
    else strip.push(makeTier(place, at, (rank += 1), bar < 0 ? '' : at < bar ? 'good' : 'bad'));
    strip.push(makeGap(at + 1));
  });
  if (!state.places.length) strip[0].append(make('span', 'hint', say('dropHint', { last: Math.min(9, responseCount()) })));
  part('.tiers').replaceChildren(...strip);
}

function makeGap(at) {
  const gap = make('span', 'gap');
  gap.dataset.drop = `gap:${at}`;
  const between = at > 0 && at < state.places.length;
  if (between && state.places[at - 1] !== BAR && state.places[at] !== BAR) gap.append(make('span', 'better', '>'));
  return gap;
}

function makeTier(numbers, at, rank, side) {
  const tier = make('span', `tier ${side}`);
  tier.dataset.drop = `tier:${at}`;
  tier.setAttribute('role', 'group');
  tier.setAttribute('aria-label', say(numbers.length > 1 ? 'badgeTied' : 'badgeRank', { rank }));
  numbers.forEach((number, i) => tier.append(...(i ? [make('span', 'equals', '=')] : []), makeChip(number)));
  return tier;
}

function drawBadges() {
  const tiers = tiersOf(state.places);
  const bar = state.places.indexOf(BAR);
  const acceptable = bar < 0 ? tiers.length : tiersOf(state.places.slice(0, bar)).length;
  root.querySelectorAll('.card').forEach((card, i) => {
    const rank = tiers.findIndex(tier => tier.includes(i + 1)) + 1;
    const name = !rank ? 'badgeUnranked' : tiers[rank - 1].length > 1 ? 'badgeTied' : 'badgeRank';
    const verdict = !rank || bar < 0 ? '' : ` · ${say(rank <= acceptable ? 'acceptable' : 'unacceptable')}`;
    card.querySelector('.badge').textContent = say(name, { rank }) + verdict;
    card.classList.toggle('ranked', rank > 0);
    card.classList.toggle('good', rank > 0 && bar >= 0 && rank <= acceptable);
    card.classList.toggle('bad', rank > 0 && bar >= 0 && rank > acceptable);
    card.querySelector('.chip').setAttribute('aria-label', chipLabel(i + 1));
  });
}

function showNothing(title, hint, ways, sentence = '') {
  Object.assign(state, { task: null, places: [] });
  drawTask();
  part('.nothing h2').textContent = say(title);
  part('.nothing p').textContent = sentence || (hint ? say(hint, state.progress || {}) : '');
  part('.nothing .ways').replaceChildren(...ways);
}

function showFinished() {
  const { total, skipped, flagged } = state.progress;
  if (!total) return showNothing('emptyProject', 'noProjectHint', [dataLink()]);
  showNothing('allDone', 'allDoneHint', [wayOut('openHistory', () => openDrawer('history')), wayOut('undo', undo), dataLink()]);
  if (skipped + flagged) part('.nothing p').append(` ${say('asideHint')}`);
}

function dataLink() {
  const link = make('a', 'button', say('openData'));
  link.href = 'data';
  return link;
}

function wayOut(name, action) {
  const button = make('button', '', say(name));
  button.type = 'button';
  button.addEventListener('click', action);
  return button;
}
