// Greedy tokens of transformers.js in Node: node transformers_js.mjs PACKAGE CASE; writes JSON to standard output.
import { readFileSync } from "node:fs";
import path from "node:path";
import { AutoModelForCausalLM, Tensor, env } from "@huggingface/transformers";

const [folder, file] = process.argv.slice(2);
const { prompts, texts, new_tokens } = JSON.parse(readFileSync(file, "utf-8"));
env.allowRemoteModels = false;
env.localModelPath = path.dirname(path.resolve(folder)) + path.sep;
const { AutoTokenizer } = await import("@huggingface/transformers");
const name = path.basename(path.resolve(folder));
const tokenizer = await AutoTokenizer.from_pretrained(name);
const model = await AutoModelForCausalLM.from_pretrained(name, {
  subfolder: "",
  model_file_name: "model",
  dtype: "fp32",
  device: "cpu",
});
const tokens = [];
for (const [index, prompt] of prompts.entries()) {
  const own = tokenizer(texts[index]).input_ids.tolist()[0].map(Number);
  if (JSON.stringify(own) !== JSON.stringify(prompt)) throw new Error(`the tokenizer gives ${own} for ${texts[index]}`);
  const shape = [1, prompt.length];
  const ids = new Tensor("int64", BigInt64Array.from(prompt.map(BigInt)), shape);
  const mask = new Tensor("int64", new BigInt64Array(prompt.length).fill(1n), shape);
  const found = await model.generate({ input_ids: ids, attention_mask: mask, max_new_tokens: new_tokens, do_sample: false });
  tokens.push(found.tolist()[0].slice(prompt.length).map(Number));
}
console.log(JSON.stringify(tokens));
