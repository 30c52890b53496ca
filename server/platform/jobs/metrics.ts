import type { Counter, Histogram } from 'prom-client'
import { type Metrics, secondsBuckets } from '../metrics.ts'

export interface JobMetrics {
  ended: Counter<'queue' | 'state'>
  waited: Histogram<'queue'>
}

export function makeJobMetrics(metrics: Metrics): JobMetrics {
  return {
    ended: metrics.counter('jobs_ended_total', 'Jobs that ended or went back in line.', ['queue', 'state']),
    waited: metrics.histogram(
      'jobs_wait_seconds',
      'Time from add to start.',
      ['queue'],
      [...secondsBuckets, 30, 60, 300],
    ),
  }
}
