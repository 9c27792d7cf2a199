// Validates the custom resources of the files given, with their makers' own schemas. Run from where its packages are installed.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const modules = process.cwd() + "/node_modules/";
const load = (path) => import(pathToFileURL(path).href);
const require = createRequire(pathToFileURL(process.cwd() + "/package.json"));
const { loadAll } = await load(require.resolve("js-yaml"));
const { kedaSh } = await load(modules + "@kubernetes-models/keda/index.js");
const { monitoringCoreosCom } = await load(modules + "@kubernetes-models/prometheus-operator/index.js");
const KNOWN = { "keda.sh/v1alpha1": kedaSh.v1alpha1, "monitoring.coreos.com/v1": monitoringCoreosCom.v1 };

const valid = {};
let invalid = 0;
for (const path of process.argv.slice(2)) {
  for (const object of loadAll(readFileSync(path, "utf8"))) {
    const kinds = KNOWN[object?.apiVersion];
    if (!kinds) continue;
    try {
      new kinds[object.kind](object).validate();
      valid[object.kind] = (valid[object.kind] ?? 0) + 1;
    } catch (error) {
      invalid += 1;
      console.error(`${path}: ${object.kind} ${object.metadata?.name}: ${error.message}`);
    }
  }
}
console.log(Object.entries(valid).map(([kind, count]) => `${count} ${kind}`).join(", "));
process.exit(invalid ? 1 : 0);
