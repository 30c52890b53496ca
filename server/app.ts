import path from 'node:path'
import type { MigrationSet } from '#platform/database/migrate.ts'

const here = import.meta.dirname

/** Every part that has tables, in the order in which they are made. */
export const migrationSets: readonly MigrationSet[] = [
  { name: 'platform', folder: path.join(here, 'platform/database/migrations') },
  { name: 'jobs', folder: path.join(here, 'platform/jobs/migrations') },
  { name: 'identity', folder: path.join(here, 'services/identity/migrations') },
]
