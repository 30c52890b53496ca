import { availableParallelism } from 'node:os'
import { flag, integer, type Settings, type SettingsTable } from '#platform/config.ts'

const mib = 1024 * 1024
const cpus = availableParallelism()

export const runnerSettings = {
  RUN_CONCURRENCY: integer(Math.max(4, cpus * 4), { min: 1, max: 4096 }, 'Programs a worker process runs at once.'),
  RUN_WARM_BOXES: integer(
    Math.max(2, cpus),
    { min: 0, max: 256 },
    'Sandboxes made ahead of need; 0 makes each run wait for its own.',
  ),
  RUN_CGROUPS: flag(true, 'Use cgroups for limits where they can be had; else rlimits and sampling.'),
  RUN_CPU_MS: integer(5000, { min: 10, max: 3_600_000 }, 'CPU time a run gets unless it asks, in ms.'),
  RUN_CPU_MS_MAX: integer(30_000, { min: 10, max: 3_600_000 }, 'Most CPU time a run may ask for, in ms.'),
  RUN_WALL_MS: integer(10_000, { min: 10, max: 3_600_000 }, 'Time a run gets unless it asks, in ms.'),
  RUN_WALL_MS_MAX: integer(60_000, { min: 10, max: 3_600_000 }, 'Most time a run may ask for, in ms.'),
  RUN_MEMORY_BYTES: integer(
    256 * mib,
    { min: 8 * mib, max: 1024 * 1024 * mib },
    'Memory a run gets unless it asks, in bytes.',
  ),
  RUN_MEMORY_BYTES_MAX: integer(
    1024 * mib,
    { min: 8 * mib, max: 1024 * 1024 * mib },
    'Most memory a run may ask for, in bytes.',
  ),
  RUN_PROCESSES: integer(64, { min: 1, max: 10_000 }, 'Processes and threads a run gets unless it asks.'),
  RUN_PROCESSES_MAX: integer(256, { min: 1, max: 10_000 }, 'Most processes and threads a run may ask for.'),
  RUN_OUTPUT_BYTES: integer(
    mib,
    { min: 1024, max: 64 * mib },
    'Bytes kept of stdout and of stderr unless the run asks.',
  ),
  RUN_OUTPUT_BYTES_MAX: integer(4 * mib, { min: 1024, max: 64 * mib }, 'Most bytes of each a run may ask to keep.'),
  RUN_DISK_BYTES: integer(
    64 * mib,
    { min: mib, max: 1024 * 1024 * mib },
    'Size of a run’s own disk, which lies in its memory, in bytes.',
  ),
  RUN_SOURCE_BYTES: integer(64 * 1024, { min: 64, max: 16 * mib }, 'Largest source, all files together, in bytes.'),
  RUN_STDIN_BYTES: integer(512 * 1024, { min: 0, max: 16 * mib }, 'Largest stdin, in bytes.'),
  RUN_WAITING_PER_USER: integer(5000, { min: 1, max: 10_000_000 }, 'Runs of one user that may wait or run.'),
  RUN_WAITING_MAX: integer(200_000, { min: 1, max: 100_000_000 }, 'Runs of all users that may wait or run.'),
  RUN_ATTEMPTS_MAX: integer(
    5,
    { min: 1, max: 100 },
    'How often a run is begun before it ends as `error`; a program that fails is not begun again.',
  ),
  RUN_KEEP_DAYS: integer(30, { min: 1, max: 3650 }, 'How long ended runs are kept, in days.'),
} satisfies SettingsTable

export type RunnerSettings = Settings<typeof runnerSettings>
