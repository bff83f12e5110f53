// The way to the server: JSON over plain routes, every failure an exception with a sentence.
const ANSWER_WITHIN_MS = 20000;

class ServerError extends Error {
  /** `status` 0: the server could not be reached, so nobody knows whether it heard us. */
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

async function askServer(path, body = null, options = {}) {
  const request = body === null ? {} : {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', 'X-Rankwise': '1' },
    body: JSON.stringify(body),
  };
  let answer;
  try {
    answer = await fetch(`api/${path}`, { signal: AbortSignal.timeout(ANSWER_WITHIN_MS), ...request, ...options });
    if (answer.ok) return await answer.json();
  } catch {
    throw new ServerError(0, say('unreachable'));
  }
  const { detail } = await answer.json().catch(() => ({}));
  throw new ServerError(answer.status, detail || `${answer.status} ${answer.statusText}.`);
}

/** One key per attempt: the same decision sent again carries the same key, a changed one a new key. */
function attemptKeys() {
  let last = null;
  return {
    keyFor(decision) {
      const said = JSON.stringify(decision);
      if (last?.said !== said) last = { said, key: crypto.randomUUID() };
      return last.key;
    },
    answered() { last = null; },
  };
}
