import { availableParallelism } from 'node:os'
import { integer, optionalText, type Settings, type SettingsTable, text, url } from '#platform/config.ts'
import { defaultPresets, parsePresets } from './processing/transform.ts'

const mib = 1024 * 1024

export const imagesSettings = {
  N_WORKERS: integer(
    availableParallelism(),
    { min: 1, max: 1024 },
    'Images a process works on at once, each in a process of its own; one more where somebody waits for a transform.',
  ),
  BASE_PATH: optionalText(
    'A folder into which images of the old `/upload` are written too, as `<image_id>.jpg`. Without it they are in BLOB_URL alone.',
  ),
  IMAGE_BYTES_MAX: integer(
    64 * mib,
    { min: 1024, max: 10 * 1024 * mib },
    'Largest file taken at `/v1/images` and `/v1/uploads`, in bytes.',
  ),
  IMAGE_PIXELS_MAX: integer(
    100_000_000,
    { min: 1, max: 10_000_000_000 },
    'Most pixels an image may have, all its frames together.',
  ),
  IMAGE_MEMORY_BYTES: integer(
    256 * mib,
    { min: 64 * mib, max: 1024 * 1024 * mib },
    'Memory for decoding, all workers of a process together, in bytes. An image that needs more is refused.',
  ),
  IMAGE_MS_MAX: integer(20_000, { min: 100, max: 3_600_000 }, 'Time an image may take to be worked on, in ms.'),
  IMAGE_PRESETS: {
    ...text(
      defaultPresets,
      'Variants made of every image, as `name:transform;name:transform`; docs/images.md has the words.',
    ),
    parse: (value: string) => {
      parsePresets(value)
      return value
    },
  },
  IMAGE_WAITING_MAX: integer(
    10_000,
    { min: 1, max: 100_000_000 },
    'Images of all users that may wait to be worked on.',
  ),
  IMAGE_UPLOADS_MAX: integer(256, { min: 1, max: 100_000 }, 'Uploads a process receives at once.'),
  IMAGE_UPLOAD_MS: integer(
    50_000,
    { min: 100, max: 59_000 },
    'Time an upload’s body may take, in ms; what takes longer goes to `/v1/uploads` in pieces.',
  ),
  IMAGE_IDLE_MS: integer(10_000, { min: 50, max: 59_000 }, 'How long an upload may send nothing, in ms.'),
  IMAGE_UPLOAD_HOURS: integer(
    24,
    { min: 1, max: 8760 },
    'How long an upload in pieces may take before it is forgotten, in hours.',
  ),
  IMAGE_BYTES_PER_USER: integer(
    10 * 1024 * mib,
    { min: 1024, max: Number.MAX_SAFE_INTEGER },
    'Bytes one user’s images may take, with all that is made of them. What exceeds them is refused; a variant is then made when it is asked for.',
  ),
  IMAGE_TRANSFORMS_MAX: integer(
    200,
    { min: 0, max: 1_000_000 },
    'Transforms of one image that are kept; more are made each time.',
  ),
  IMAGE_ORPHAN_HOURS: integer(
    24,
    { min: 1, max: 8760 },
    'Age in hours at which a blob that belongs to no image is swept away.',
  ),
  IMAGE_SWEEP_MINUTES_MIN: integer(
    10,
    { min: 0, max: 1440 },
    'Blobs younger than that are left alone, whatever a sweep is told, in minutes: they may be about to be an image’s.',
  ),
  IMAGE_SCAN_COMMAND: {
    ...optionalText(
      'A command that is given each file on stdin before it is worked on: 0 lets it pass, 1 refuses it (its first line of output says why), anything else is tried again.',
    ),
    parse: (value: string) => {
      if (value.trim() === '') throw new Error('it must name a program, or not be set.')
      return value
    },
  },
  IMAGE_SCAN_URL: url(
    ['http', 'https'],
    'The same by POST: 2xx lets the file pass, 422 refuses it (the body says why), anything else is tried again.',
  ),
} satisfies SettingsTable

export type ImagesSettings = Settings<typeof imagesSettings>
