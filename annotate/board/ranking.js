// Moves on a ranking. Each takes places and gives new places; nothing here touches the page.

const tiersOf = places => places.filter(place => place !== BAR);
const isRanked = (places, number) => tiersOf(places).some(tier => tier.includes(number));
const unrankedOf = (places, count) =>
  Array.from({ length: count }, (_, i) => i + 1).filter(number => !isRanked(places, number));

/** Emptied tiers fall away. */
const tidy = places => places.filter(place => place === BAR || place.length > 0);

/** Without a response or the bar, but with its emptied place, so that positions stay what they were. */
function hollowed(places, what) {
  return places.map(place => {
    if (place === BAR) return what === BAR ? [] : BAR;
    return place.filter(number => number !== what);
  });
}

const takenOut = (places, what) => tidy(hollowed(places, what));

/** A digit or a tap: an unranked response takes the next place, a ranked one is taken out again. */
function toggled(places, number) {
  return isRanked(places, number) ? takenOut(places, number) : [...places, [number]];
}

/** Ties a response with the last tier. */
function tiedWithLast(places, number) {
  const rest = takenOut(places, number);
  const last = rest.findLastIndex(place => place !== BAR);
  if (last < 0) return [...rest, [number]];
  return rest.map((place, at) => (at === last ? [...place, number] : place));
}

/** The bar goes behind everything placed so far; if it is there already, it goes away. */
function barToggled(places) {
  return places.at(-1) === BAR ? takenOut(places, BAR) : [...takenOut(places, BAR), BAR];
}

/** A drop: `pool`, `gap:N` (a new place before place N) or `tier:N` (a tie). */
function dropped(places, what, target) {
  const [kind, position] = target.split(':');
  if (kind === 'pool') return takenOut(places, what);
  const at = Number(position);
  const next = hollowed(places, what);
  if (kind === 'tier' && what !== BAR) next[at] = [...next[at], what];
  else next.splice(at, 0, what === BAR ? BAR : [what]);
  return tidy(next);
}

/** One step to the left (-1) or right (+1): out of a tie, past the bar, or into the neighbouring tier. */
function shifted(places, what, step) {
  const at = places.findIndex(place => (place === BAR ? what === BAR : place.includes(what)));
  if (at < 0) return what === BAR ? barToggled(places) : toggled(places, what);
  const tied = what !== BAR && places[at].length > 1;
  const neighbour = places[at + step];
  if (tied) return dropped(places, what, `gap:${step < 0 ? at : at + 1}`);
  if (neighbour === undefined) return places;
  if (what === BAR || neighbour === BAR) return dropped(places, what, `gap:${step < 0 ? at - 1 : at + 2}`);
  return dropped(places, what, `tier:${at + step}`);
}
