// By `test_sdks.py`: BASE_URL KEY. The calls of openai's users in Node.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [baseURL, apiKey] = process.argv.slice(2);
const client = (more = {}) => new OpenAI({ baseURL, apiKey, maxRetries: 0, ...more });
const ai = client();
const messages = [{ role: "user", content: "one two three" }];
const call = [{ role: "user", content: '{"city": "Oslo"}' }];
const weather = { name: "weather", parameters: { type: "object" } };
const tools = [{ type: "function", function: weather }];
const ask = (model, more = {}, from = ai) =>
  from.chat.completions.create({ model, messages, ...more });

const whole = await ask("echo");
assert.equal(whole.choices[0].message.content, "one two three");
let text = "";
for await (const part of await ask("auto", { stream: true })) {
  text += part.choices[0]?.delta?.content ?? "";
}
assert.equal(text, "one two three");
const told = await ask("echo", { messages: call, tools });
assert.equal(told.choices[0].message.tool_calls[0].function.name, "weather");
const formed = await ask("echo", { messages: call, response_format: { type: "json_object" } });
assert.deepEqual(JSON.parse(formed.choices[0].message.content), { city: "Oslo" });
const names = [];
for await (const model of ai.models.list()) names.push(model.id);
assert(names.includes("auto") && names.includes("echo"));

await assert.rejects(ask("nothing"), (e) => {
  assert(e instanceof OpenAI.NotFoundError);
  assert.equal(e.code, "model_not_found");
  assert.equal(e.param, "model");
  return true;
});
await assert.rejects(ask("echo", { messages: [] }), OpenAI.BadRequestError);
await assert.rejects(ask("full"), OpenAI.RateLimitError);
await assert.rejects(ask("echo", {}, client({ apiKey: "rh-wrong" })), OpenAI.AuthenticationError);
await assert.rejects(ask("slow", {}, client({ timeout: 300 })), OpenAI.APIConnectionTimeoutError);

const long = [{ role: "user", content: "word ".repeat(120) }];
const stream = await ask("slow", { stream: true, messages: long });
for await (const _ of stream) break; // which leaves it
const leaving = new AbortController();
setTimeout(() => leaving.abort(), 200);
await assert.rejects(
  ai.chat.completions.create({ model: "slow", messages }, { signal: leaving.signal }),
  OpenAI.APIUserAbortError,
);
