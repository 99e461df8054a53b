/** Server-sent events of a response's body, as the HTML standard defines them; only `data` is used. */

const MAX_EVENT_CHARACTERS = 1 << 20;

/**
 * Yield the data of each event.
 * @param {ReadableStream<Uint8Array>} body
 * @yields {string}
 * @throws {Error} if an event is longer than a megabyte, which our server does not send.
 */
export async function* serverSentEvents(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines.map((each) => each.replace(/\r$/, ""))) {
        if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
        else if (!line && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
      if (rest.length > MAX_EVENT_CHARACTERS) throw new Error("an event has no end");
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have ended already
  }
}
