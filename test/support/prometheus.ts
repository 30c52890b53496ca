/** A Prometheus for tests, where `test/services/prometheus.sh` has got it. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { atEnd } from './at-end.ts'
import { freePort, installedFolder, makeServer, whyMissing } from './servers.ts'

/** Why tests that need one are skipped; false where there is one. */
export const prometheusIsMissing: string | false = whyMissing('prometheus')

export interface TestPrometheus {
  /** The values of each series that an expression has had within the last so many seconds. */
  ask(expression: string, seconds: number): Promise<{ labels: Record<string, string>; values: number[] }[]>
}

const askTimeoutMs = 5000

interface Result {
  status: string
  error?: string
  data: { result: { metric: Record<string, string>; values: [number, string][] }[] }
}

/** Scrapes what its configuration says; gone at the end of the file's tests. */
export async function makeTestPrometheus(given: {
  /** Makes the configuration. @param folder for files that it names */
  config: (folder: string) => Promise<string>
}): Promise<TestPrometheus> {
  const folder = await mkdtemp(path.join(tmpdir(), 'capstan-prometheus-'))
  const port = await freePort()
  const url = `http://127.0.0.1:${port}`
  const file = path.join(folder, 'prometheus.yml')
  await writeFile(file, await given.config(folder))
  const server = makeServer({
    name: 'Prometheus',
    command: path.join(installedFolder('prometheus'), 'prometheus'),
    args: [
      `--config.file=${file}`,
      `--storage.tsdb.path=${path.join(folder, 'data')}`,
      `--web.listen-address=127.0.0.1:${port}`,
      '--log.level=warn',
    ],
    isReady: async () => (await fetch(`${url}/-/ready`, { signal: AbortSignal.timeout(askTimeoutMs) })).ok,
  })
  atEnd(async () => {
    await server.kill()
    await rm(folder, { recursive: true, force: true })
  })
  await server.start()
  return {
    async ask(query, seconds) {
      const now = Date.now() / 1000
      const given = new URLSearchParams({ query, start: String(now - seconds), end: String(now), step: '1' })
      const response = await fetch(`${url}/api/v1/query_range?${given}`, { signal: AbortSignal.timeout(askTimeoutMs) })
      const { status, error, data } = (await response.json()) as Result
      if (status !== 'success') throw new Error(`Prometheus does not take ${query}: ${error}`)
      return data.result.map(({ metric, values }) => ({
        labels: metric,
        values: values.map(([, value]) => Number(value)),
      }))
    },
  }
}
