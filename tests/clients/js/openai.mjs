// The official OpenAI SDK for JavaScript.
import OpenAI, { APIError, AuthenticationError, NotFoundError, RateLimitError, BadRequestError } from "openai";
import { MODEL, apiKey, baseURL, collect, raised, run } from "./run.mjs";

const sdk = new OpenAI({ baseURL, apiKey });
const said = (content) => [
  { role: "system", content: "You are terse." },
  { role: "user", content },
];
const weather = {
  name: "weather",
  description: "The weather of a city",
  parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
};
const tools = [{ type: "function", function: weather }];
const create = (content, fields = {}) =>
  sdk.chat.completions.create({ model: MODEL, messages: said(content), ...fields });
const stream = async (content, fields = {}) => collect(await create(content, { stream: true, ...fields }));
const textOf = (chunks) => chunks.map((chunk) => chunk.choices[0]?.delta?.content ?? "").join("");

const kinds = { APIError, AuthenticationError, NotFoundError, RateLimitError, BadRequestError };
async function failure(work) {
  const error = await raised(work);
  return {
    raised: error !== null,
    kinds: Object.keys(kinds).filter((name) => error instanceof kinds[name]),
    status: error?.status ?? null,
    code: error?.code ?? null,
    type: error?.type ?? null,
    param: error?.param ?? null,
    requestID: error?.requestID ?? null,
    message: error?.message ?? null,
  };
}

await run({
  async plain() {
    const { data, response, request_id } = await create("Hello [[emulate tokens=20]]", { max_tokens: 50 }).withResponse();
    return {
      text: data.choices[0].message.content,
      finish: data.choices[0].finish_reason,
      usage: data.usage,
      requestIDs: [data._request_id, request_id, response.headers.get("x-request-id")],
    };
  },
  async streamed() {
    const plain = await create("Hello [[emulate tokens=30]]");
    const bare = await stream("Hello [[emulate tokens=30]]");
    const asked = await stream("Hello [[emulate tokens=30]]", { stream_options: { include_usage: true } });
    return {
      texts: [plain.choices[0].message.content, textOf(bare), textOf(asked)],
      finish: bare.at(-1).choices[0].finish_reason,
      bareUsages: bare.map((chunk) => chunk.usage ?? null).filter(Boolean).length,
      lastChoices: asked.at(-1).choices,
      usage: asked.at(-1).usage,
    };
  },
  async tools() {
    const content = "Weather in Oslo? [[emulate tokens=12 tool_calls=indexed]]";
    const plain = await create(content, { tools });
    const helper = sdk.chat.completions.stream({ model: MODEL, messages: said(content), tools });
    const final = await helper.finalChatCompletion();
    const call = plain.choices[0].message.tool_calls[0];
    const again = final.choices[0].message.tool_calls[0];
    return { calls: [call.function, again.function].map(({ name, arguments: text }) => ({ name, text })), finish: final.choices[0].finish_reason };
  },
  async functions() {
    const content = "Weather in Oslo? [[emulate tokens=12 function_call]]";
    const plain = await create(content, { functions: [weather] });
    const chunks = await stream(content, { functions: [weather] });
    const parts = chunks.map((chunk) => chunk.choices[0]?.delta?.function_call).filter(Boolean);
    const call = plain.choices[0].message.function_call;
    return {
      calls: [
        { name: call.name, text: call.arguments },
        { name: parts[0].name, text: parts.map((part) => part.arguments ?? "").join("") },
      ],
    };
  },
  async choices() {
    const plain = await create("Hello [[emulate tokens=10]]", { n: 2 });
    const chunks = await stream("Hello [[emulate tokens=10]]", { n: 2 });
    const choices = chunks.flatMap((chunk) => chunk.choices);
    return {
      plain: plain.choices.map((choice) => [choice.index, choice.finish_reason]),
      streamed: choices.filter((choice) => choice.finish_reason).map((choice) => [choice.index, choice.finish_reason]),
    };
  },
  async logprobs() {
    const plain = await create("Hello [[emulate tokens=5]]", { logprobs: true, top_logprobs: 1 });
    const chunks = await stream("Hello [[emulate tokens=5]]", { logprobs: true, top_logprobs: 1 });
    return {
      plain: plain.choices[0].logprobs.content.length,
      streamed: chunks.flatMap((chunk) => chunk.choices[0]?.logprobs?.content ?? []).length,
    };
  },
  async embeddings() {
    const body = { model: "text-embedding-3-small", input: ["first", "second text"], dimensions: 64 };
    const packed = await sdk.embeddings.create(body);
    const plain = await sdk.embeddings.create({ ...body, encoding_format: "float" });
    return { packed: packed.data.map((one) => one.embedding), plain: plain.data.map((one) => one.embedding), usage: packed.usage };
  },
  async moderations() {
    const answer = await sdk.moderations.create({ input: ["kind words", "more of them"] });
    return answer.results.map((result) => result.flagged);
  },
  async completions() {
    const body = { model: "gpt-3.5-turbo-instruct", prompt: "Once upon a time [[emulate tokens=15]]", max_tokens: 40 };
    const plain = await sdk.completions.create(body);
    const chunks = await collect(await sdk.completions.create({ ...body, stream: true }));
    return [plain.choices[0].text, chunks.map((chunk) => chunk.choices[0]?.text ?? "").join("")];
  },
  async models() {
    const ids = (await collect(sdk.models.list())).map((model) => model.id);
    return { ids, found: await sdk.models.retrieve("org/own-model") };
  },
  foreignHeaders: async () =>
    textOf(
      await collect(
        await sdk.chat.completions.create(
          { model: MODEL, messages: said("Hello [[emulate tokens=4]]"), stream: true },
          { headers: { "anthropic-version": "2023-06-01", "anthropic-beta": "unknown-value" } },
        ),
      ),
    ),
  create: () => failure(() => create("Hello")),
  unknownModel: () => failure(() => create("Hello", { model: "no-such-model" })),
  badParameter: () => failure(() => create("Hello", { n: 0 })),
  noBalanceStreamed: () => failure(() => stream("Hello")),
  closed: () => failure(() => stream("Hello [[emulate tokens=40 fault=close_after:5]]")),
  ended: () => failure(() => stream("Hello [[emulate tokens=40 fault=end_after:5]]")),
  errorEvent: () => failure(() => stream("Hello [[emulate tokens=40 fault=error_event_after:5]]")),
  upstreamFails: () => failure(() => new OpenAI({ baseURL, apiKey, maxRetries: 0 }).chat.completions.create({ model: MODEL, messages: said("Hello [[emulate fault=status:500]]") })),
});
