// node anthropic_test.mjs NODE_MODULES URL: messages and tools with the anthropic SDK for Node.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";

const [modules, baseURL] = process.argv.slice(2);
const { Anthropic } = createRequire(path.join(modules, "x"))("@anthropic-ai/sdk");
const client = new Anthropic({ baseURL, apiKey: "x", maxRetries: 0 });
const user = (content) => ({ role: "user", content });
const base = { model: "scripted", max_tokens: 200 };
const tools = [{
  name: "get_weather",
  input_schema: {
    type: "object", properties: { city: { type: "string" }, days: { type: "integer" } },
  },
}];

const plain = await client.messages.create({ ...base, messages: [user("script:hello;")] });
assert.deepEqual(plain.content.map((block) => block.type), ["thinking", "text"]);
assert.equal(plain.content[1].text, "Hello, world! 你好 🎉");

const stream = client.messages.stream({ ...base, messages: [user("script:tool;")], tools });
let json = "";
stream.on("inputJson", (part) => { json += part; });
const called = await stream.finalMessage();
assert.equal(called.stop_reason, "tool_use");
const use = called.content.at(-1);
assert.deepEqual(use.input, { city: "Paris", days: 3 });
assert.deepEqual(JSON.parse(json), use.input);
assert.ok(called.usage.output_tokens > 0);

const answer = await client.messages.create({
  ...base, tools,
  messages: [user("script:tool;"), { role: "assistant", content: called.content },
    user([{ type: "tool_result", tool_use_id: use.id, content: "Sunny. script:hello;" }])],
});
assert.equal(answer.content.at(-1).text, "Hello, world! 你好 🎉");

const counted = await client.messages.countTokens({
  model: "scripted", messages: [user("script:hello;")],
});
assert.ok(counted.input_tokens > 0);
await assert.rejects(client.messages.create({ ...base, messages: [] }), (error) => {
  assert.equal(error.status, 400);
  assert.equal(error.error.error.type, "invalid_request_error");
  return true;
});
console.log("ok");
