// LangChain for JavaScript.
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { tool } from "@langchain/core/tools";
import { z } from "zod";
import { MODEL, apiKey, baseURL, collect, raised, run } from "./run.mjs";

const options = { model: MODEL, apiKey, configuration: { baseURL }, maxRetries: 0 };
const weather = tool(async () => "rain", {
  name: "weather",
  description: "The weather of a city",
  schema: z.object({ text: z.string() }),
});

await run({
  async invoked() {
    const answer = await new ChatOpenAI(options).invoke("Hello [[emulate tokens=20]]");
    return { text: answer.content, usage: answer.usage_metadata };
  },
  async streamed() {
    const chunks = await collect(await new ChatOpenAI(options).stream("Hello [[emulate tokens=20]]"));
    const whole = chunks.reduce((sum, chunk) => sum.concat(chunk));
    return { text: whole.content, usage: whole.usage_metadata };
  },
  async tools() {
    const answer = await new ChatOpenAI(options).bindTools([weather]).invoke("Weather? [[emulate tokens=12 tool_calls=indexed]]");
    return answer.tool_calls.map((call) => [call.name, call.args]);
  },
  async embeddings() {
    const vectors = await new OpenAIEmbeddings({ ...options, model: "text-embedding-3-small" }).embedDocuments(["one", "two"]);
    return vectors.map((one) => one.length);
  },
  async cut() {
    const error = await raised(async () =>
      collect(await new ChatOpenAI(options).stream("Hello [[emulate tokens=40 fault=close_after:5]]")),
    );
    return { raised: error !== null, message: String(error) };
  },
});
