/** `make bench`, or `npm run bench jobs` for one of them. Prints Markdown tables; docs/benchmarks.md keeps them. */
import { benchChat } from './chat.ts'
import { benchImages } from './images.ts'
import { benchIngest } from './ingest.ts'
import { benchJobs } from './jobs.ts'
import { benchLedger } from './ledger.ts'
import { benchLive } from './live.ts'
import { benchRuns } from './runs.ts'

const benchmarks: Record<string, () => Promise<void>> = {
  jobs: benchJobs,
  runs: benchRuns,
  ledger: benchLedger,
  chat: benchChat,
  live: benchLive,
  images: benchImages,
  ingest: benchIngest,
}

const wanted = process.argv[2]
if (wanted !== undefined && !(wanted in benchmarks)) {
  console.error(`There is no benchmark \`${wanted}\`. Known: ${Object.keys(benchmarks).join(', ')}.`)
  process.exit(1)
}
for (const [name, run] of Object.entries(benchmarks)) {
  if (wanted === undefined || wanted === name) await run()
}
// graphile-worker and BullMQ leave timers behind.
process.exit(0)
