import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from 'prom-client'

export interface Metrics {
  registry: Registry
  httpDuration: Histogram<'method' | 'route' | 'status'>
  counter<L extends string>(name: string, help: string, labels: readonly L[]): Counter<L>
  gauge<L extends string>(
    name: string,
    help: string,
    labels: readonly L[],
    collect?: (gauge: Gauge<L>) => void | Promise<void>,
  ): Gauge<L>
  histogram<L extends string>(name: string, help: string, labels: readonly L[], buckets: number[]): Histogram<L>
}

const secondsBuckets = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]

/** One registry a process. Every metric's name starts with `capstan_`. */
export function makeMetrics(options: { processMetrics: boolean } = { processMetrics: true }): Metrics {
  const registry = new Registry()
  if (options.processMetrics) collectDefaultMetrics({ register: registry })
  const registers = [registry]
  return {
    registry,
    httpDuration: new Histogram({
      name: 'capstan_http_request_seconds',
      help: 'Time to answer a request.',
      labelNames: ['method', 'route', 'status'],
      buckets: secondsBuckets,
      registers,
    }),
    counter: (name, help, labelNames) =>
      new Counter({ name: `capstan_${name}`, help, labelNames: [...labelNames], registers }),
    gauge: (name, help, labelNames, collect) =>
      new Gauge({
        name: `capstan_${name}`,
        help,
        labelNames: [...labelNames],
        registers,
        ...(collect
          ? {
              collect() {
                return collect(this)
              },
            }
          : {}),
      }),
    histogram: (name, help, labelNames, buckets) =>
      new Histogram({ name: `capstan_${name}`, help, labelNames: [...labelNames], buckets, registers }),
  }
}

export { secondsBuckets }
