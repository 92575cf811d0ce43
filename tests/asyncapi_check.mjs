// Parses the AsyncAPI document on standard input with the AsyncAPI project's own parser; one line per diagnostic.
// Run by tests/test_schema.py; `npm install` of @asyncapi/parser goes to a cache of its own, see there.
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';

const { Parser } = createRequire(`${process.argv[2]}/`)('@asyncapi/parser');
const { document, diagnostics } = await new Parser().parse(readFileSync(0, 'utf-8'));
for (const { severity, code, path, message } of diagnostics) {
  console.log(`${['error', 'warning', 'information', 'hint'][severity]} ${code} ${path.join('.')}: ${message}`);
}
console.log(`parsed ${document ? document.version() : 'nothing'}: ${document ? document.allChannels().length : 0} channels, `
  + `${document ? document.allOperations().length : 0} operations, ${diagnostics.filter((d) => d.severity === 0).length} errors`);
process.exit(document && !diagnostics.some((d) => d.severity === 0) ? 0 : 1);
