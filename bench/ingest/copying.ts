/** The limit of what can be loaded: `COPY` of the same lines by psql, without any HTTP. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'
import { generateCourses } from '../../server/services/ingest/courses.ts'
import type { Sample } from '../support/measure.ts'

/** A file of JSON lines as COPY takes them: nothing in them needs escaping. */
export async function writeLines(name: string, count: number) {
  const file = createWriteStream(name)
  for (const record of generateCourses({ count, seed: 1 })) {
    if (!file.write(`${JSON.stringify(record)}\n`)) await once(file, 'drain')
  }
  file.end()
  await once(file, 'close')
}

export async function copyLines(given: { url: string; file: string; count: number }): Promise<Sample> {
  const begun = performance.now()
  const words = `\\copy usual.records (data) from '${given.file}'`
  const child = spawn('psql', ['-q', '-v', 'ON_ERROR_STOP=1', '-c', words, given.url], {
    stdio: ['ignore', 'ignore', 'pipe'],
  })
  let wrong = ''
  child.stderr.on('data', chunk => {
    wrong += chunk
  })
  const [code] = (await once(child, 'close')) as [number]
  if (code !== 0) throw new Error(`psql failed:\n${wrong}`)
  return { perSecond: (given.count / (performance.now() - begun)) * 1000 }
}

export async function hasPsql(): Promise<boolean> {
  const child = spawn('psql', ['--version'], { stdio: 'ignore' })
  return new Promise(resolve => child.once('error', () => resolve(false)).once('exit', code => resolve(code === 0)))
}
