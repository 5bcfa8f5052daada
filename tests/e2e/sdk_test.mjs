// node sdk_test.mjs NODE_MODULES URL: chat, responses and tools with the openai SDK for Node.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import path from "node:path";

const [modules, url] = process.argv.slice(2);
const { OpenAI } = createRequire(path.join(modules, "x"))("openai");
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "x", maxRetries: 0 });
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

const functions = [{ type: "function", ...tools[0].function, strict: false }];
const response = await client.responses.create({ model: "scripted", input: "script:hello;" });
assert.equal(response.output_text, "Hello, world! 你好 🎉");
assert.equal(response.output[0].content[0].text, "A greeting is due.");

const events = client.responses.stream({
  model: "scripted", input: "script:tool;", tools: functions,
});
let args = "";
events.on("response.function_call_arguments.delta", (event) => { args += event.delta; });
const called = await events.finalResponse();
const item = called.output.find((one) => one.type === "function_call");
assert.equal(args, item.arguments);
assert.deepEqual(JSON.parse(args), { city: "Paris", days: 3 });
const then = await client.responses.create({
  model: "scripted", tools: functions, previous_response_id: called.id,
  input: [{ type: "function_call_output", call_id: item.call_id, output: "script:hello;" }],
});
assert.equal(then.output_text, "Hello, world! 你好 🎉");
assert.equal((await client.responses.retrieve(then.id)).output_text, then.output_text);
await assert.rejects(client.responses.retrieve("resp_nope"), { status: 404 });
await assert.rejects(client.responses.create({ model: "scripted", input: [] }), { status: 400 });
console.log("ok");
