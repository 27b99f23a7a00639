// Runs one case and prints what it returns as one JSON document.
export const baseURL = process.env.BASE_URL;
export const apiKey = process.env.API_KEY;
export const MODEL = "gpt-4o-mini";

export async function run(cases) {
  const name = process.argv[2];
  if (!(name in cases)) throw new Error(`no case ${name}`);
  process.stdout.write(JSON.stringify((await cases[name]()) ?? null));
}

// What a call raised, or null.
export async function raised(work) {
  try {
    await work();
    return null;
  } catch (error) {
    return error;
  }
}

export async function collect(iterable) {
  const items = [];
  for await (const item of iterable) items.push(item);
  return items;
}
