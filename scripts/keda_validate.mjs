// Validates the KEDA objects of the files given, with KEDA's own schemas. Run from where its packages are installed.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(process.cwd() + "/package.json"));
const { loadAll } = await import(pathToFileURL(require.resolve("js-yaml")).href);
const { kedaSh } = await import(pathToFileURL(process.cwd() + "/node_modules/@kubernetes-models/keda/index.js").href);

let valid = 0;
let invalid = 0;
for (const path of process.argv.slice(2)) {
  for (const object of loadAll(readFileSync(path, "utf8"))) {
    if (!object?.apiVersion?.startsWith("keda.sh/")) continue;
    try {
      new kedaSh.v1alpha1[object.kind](object).validate();
      valid += 1;
    } catch (error) {
      invalid += 1;
      console.error(`${path}: ${object.kind} ${object.metadata?.name}: ${error.message}`);
    }
  }
}
console.log(`${valid} KEDA objects are valid, ${invalid} are not`);
process.exit(invalid ? 1 : 0);
