// Checks the AsyncAPI document on standard input with the official parser: exit 1
// if it has an error or describes nothing.
import { Parser } from "@asyncapi/parser";
import { text } from "node:stream/consumers";

const { document, diagnostics } = await new Parser().parse(await text(process.stdin));
for (const d of diagnostics) console.log(`${["error", "warning", "info", "hint"][d.severity]}: ${d.path.join("/")}: ${d.message}`);
const channels = document?.allChannels().all().length ?? 0;
const errors = diagnostics.filter((d) => d.severity === 0).length;
console.log(`${channels} channels, ${errors} errors`);
process.exit(channels > 0 && errors === 0 ? 0 : 1);
