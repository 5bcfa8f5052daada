// node sdk_test.mjs NODE_MODULES BASE_URL: chat and tools with the openai SDK for Node.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";

const [modules, baseURL] = process.argv.slice(2);
const { OpenAI } = createRequire(path.join(modules, "x"))("openai");
const client = new OpenAI({ baseURL, apiKey: "x", maxRetries: 0 });
const user = (script) => ({ role: "user", content: `script:${script};` });
const tools = [{
  type: "function",
  function: {
    name: "get_weather",
    parameters: {
      type: "object",
      properties: { city: { type: "string" }, days: { type: "integer" } },
    },
  },
}];

const plain = await client.chat.completions.create({ model: "scripted", messages: [user("hello")] });
assert.equal(plain.choices[0].message.content, "Hello, world! 你好 🎉");

const stream = client.chat.completions.stream({
  model: "scripted", messages: [user("tool")], tools, stream_options: { include_usage: true },
});
const final = await stream.finalChatCompletion();
assert.equal(final.choices[0].finish_reason, "tool_calls");
const call = final.choices[0].message.tool_calls[0];
assert.deepEqual(JSON.parse(call.function.arguments), { city: "Paris", days: 3 });
assert.ok(final.usage.completion_tokens > 0);

const answer = await client.chat.completions.create({
  model: "scripted", tools,
  messages: [user("tool"), final.choices[0].message,
    { role: "tool", tool_call_id: call.id, content: "Sunny. script:hello;" }],
});
assert.equal(answer.choices[0].message.content, "Hello, world! 你好 🎉");

await assert.rejects(
  client.chat.completions.create({ model: "scripted", messages: [] }), { status: 400 });
console.log("ok");
