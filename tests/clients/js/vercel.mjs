// The Vercel AI SDK, with its OpenAI provider and its provider for OpenAI-compatible servers.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { embedMany, generateText, isStepCount, streamText, tool } from "ai";
import { z } from "zod";
import { MODEL, apiKey, baseURL, raised, run } from "./run.mjs";

const compatible = createOpenAICompatible({ name: "gateway", baseURL, apiKey, includeUsage: true });
const openai = createOpenAI({ baseURL, apiKey });
const models = { compatible: compatible(MODEL), openai: openai.chat(MODEL) };
const weather = tool({
  description: "The weather of a city",
  inputSchema: z.object({ text: z.string() }),
  execute: async () => "rain",
});
// The emulator's directive stands in the last user message, so a tool's result is asked about without it.
const prompt = "Hello [[emulate tokens=20]]";

async function everyModel(work) {
  const results = {};
  for (const [name, model] of Object.entries(models)) results[name] = await work(model);
  return results;
}

async function failure(options) {
  const errors = [];
  const error = await raised(async () => {
    const result = streamText({ maxRetries: 0, onError: ({ error }) => errors.push(error), ...options });
    for await (const part of result.fullStream) if (part.type === "error") errors.push(part.error);
    await result.text;
  });
  return { raised: error !== null || errors.length > 0, messages: [error, ...errors].filter(Boolean).map(String) };
}

await run({
  generated: () =>
    everyModel(async (model) => {
      const { text, usage, finishReason } = await generateText({ model, prompt });
      return { text, finishReason, inputTokens: usage.inputTokens, outputTokens: usage.outputTokens };
    }),
  streamed: () =>
    everyModel(async (model) => {
      const result = streamText({ model, prompt });
      let text = "";
      for await (const part of result.textStream) text += part;
      const usage = await result.usage;
      return { text, finishReason: await result.finishReason, inputTokens: usage.inputTokens, outputTokens: usage.outputTokens };
    }),
  tools: () =>
    everyModel(async (model) => {
      const messages = [{ role: "user", content: "Weather? [[emulate tokens=12 tool_calls=indexed]]" }];
      const options = { model, messages, tools: { weather }, stopWhen: isStepCount(1) };
      const plain = await generateText(options);
      const result = streamText(options);
      await result.consumeStream();
      return [plain.toolCalls, await result.toolCalls].map((calls) => calls.map((call) => [call.toolName, call.input]));
    }),
  reasoning: async () => {
    const result = streamText({ model: models.compatible, prompt: "Hello [[emulate tokens=10 reasoning_content=6]]" });
    await result.consumeStream();
    return { text: await result.text, reasoning: await result.reasoningText };
  },
  embeddings: async () => {
    const model = openai.embedding("text-embedding-3-small");
    const { embeddings, usage } = await embedMany({ model, values: ["one", "two"] });
    return { lengths: embeddings.map((one) => one.length), tokens: usage.tokens };
  },
  noBalance: () => everyModel((model) => failure({ model, prompt })),
  cut: () => everyModel((model) => failure({ model, prompt: "Hello [[emulate tokens=40 fault=close_after:5]]" })),
});
