// The ranking notation, `A2>A1=A3|A4`, by the same rules as the server's parser; the server has the last word.
// A ranking is a list of places, best first: an array of response numbers (a tier) or BAR.
const BAR = '|';
const SAME_MEANING = new Map([...'＞》〉＝≈~｜∣Ａａa０１２３４５６７８９\u3000'].map((c, i) => [c, '>>>===||AAA0123456789 '[i]]));

class NotationError extends Error {
  constructor(place, rule, values = {}) {
    super(rule);
    Object.assign(this, { place, rule, values });
  }
}

function formatPlaces(places) {
  let text = '';
  for (const [at, place] of places.entries()) {
    const afterTier = at > 0 && places[at - 1] !== BAR;
    if (place === BAR) text += BAR;
    else text += (afterTier ? '>' : '') + [...place].sort((a, b) => a - b).map(n => `A${n}`).join('=');
  }
  return text;
}

/** Places of a text; an empty text is an empty ranking. Throws NotationError with the place (1 = first character). */
function parseNotation(text, count) {
  const source = [...text].map(c => SAME_MEANING.get(c) || c).join('');
  const places = [];
  const seen = new Set();
  let at = 0;
  const next = () => {
    while (at < source.length && /\s/.test(source[at])) at += 1;
    return source[at] || '';
  };
  if (!next()) return [];
  if (next() === BAR) { places.push(BAR); at += 1; }
  let ties = false;
  while (true) {
    const number = label();
    if (ties) places.at(-1).push(number);
    else places.push([number]);
    const separator = next();
    if (!separator) return places;
    if (!'>=|'.includes(separator)) throw new NotationError(at + 1, 'ruleChar', { char: separator });
    if (separator === BAR) {
      if (places.includes(BAR)) throw new NotationError(at + 1, 'ruleTwoBars');
      places.push(BAR);
    }
    at += 1;
    ties = separator === '=';
    if (separator === BAR && !next()) return places;
  }

  function label() {
    if (!next()) throw new NotationError(at + 1, 'ruleEnds');
    const start = at;
    if (source[at] === 'A') at += 1;
    const digits = source.slice(at).match(/^[0-9]*/)[0];
    if (!digits) throw new NotationError(start + 1, 'ruleLabel', { char: source[start] });
    const number = Number(digits.slice(0, 9));
    if (number < 1 || number > count) throw new NotationError(start + 1, 'ruleUnknown', { n: digits.slice(0, 9), last: count });
    if (seen.has(number)) throw new NotationError(start + 1, 'ruleTwice', { n: number });
    seen.add(number);
    at += digits.length;
    return number;
  }
}
