// Greedy tokens of llama.cpp in Node: node llama_cpp.mjs MODEL.gguf CASE; writes JSON to standard output.
import { readFileSync } from "node:fs";
import { getLlama } from "node-llama-cpp";

const [modelPath, file] = process.argv.slice(2);
const { prompts, new_tokens } = JSON.parse(readFileSync(file, "utf-8"));
const llama = await getLlama({ gpu: false, build: "never", logLevel: "error", maxThreads: 1 });
const model = await llama.loadModel({ modelPath });
const tokens = [];
for (const prompt of prompts) {
  const context = await model.createContext({ contextSize: 256, threads: 1 });
  const found = [];
  for await (const token of context.getSequence().evaluate(prompt, { temperature: 0 })) {
    found.push(Number(token));
    if (found.length === new_tokens) break;
  }
  tokens.push(found);
  await context.dispose();
}
console.log(JSON.stringify(tokens));
process.exit(0);
