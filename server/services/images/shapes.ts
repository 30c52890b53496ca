/** What images look like on the wire. */
import { type Static, Type } from 'typebox'
import { nullable, time } from '#platform/http/schema.ts'
import type { ImageRow } from './store.ts'
import { fileStatuses, inputFormats, outputFormats, visibilities } from './types.ts'

export const Visibility = Type.Enum(visibilities)
export const Status = Type.Enum(fileStatuses, {
  description: '`failed`: it could not be decoded. `refused`: the scanner said no. `error` says why.',
})
export const imageNameMax = 200

const Variant = Type.Object({
  name: Type.String(),
  url: Type.String({ description: 'A path on this server.' }),
  format: Type.Enum([...new Set([...inputFormats, ...outputFormats])]),
  width: Type.Integer(),
  height: Type.Integer(),
  bytes: Type.Integer(),
})

export const Image = Type.Object({
  id: Type.String({ format: 'uuid' }),
  job_id: Type.String({ format: 'uuid', description: 'At `/v1/jobs/:id`; equal files of one user share it.' }),
  status: Status,
  name: nullable(Type.String()),
  visibility: Visibility,
  format: Type.Enum(inputFormats),
  bytes: Type.Integer({ description: 'Of the original.' }),
  sha256: Type.String({ description: 'Of the original, in hex.' }),
  width: Type.Integer({ description: 'Of the upright image, in pixels.' }),
  height: Type.Integer(),
  frames: Type.Integer(),
  thumbhash: nullable(Type.String({ description: 'A placeholder in base64; see https://evanw.github.io/thumbhash/.' })),
  dominant_colour: nullable(Type.String({ description: 'As `#rrggbb`.' })),
  has_alpha: nullable(Type.Boolean()),
  variants: Type.Array(Variant),
  error: nullable(Type.String()),
  created_at: time,
  ended_at: nullable(time),
})
export const ImageList = Type.Object({ images: Type.Array(Image), next_cursor: nullable(Type.String()) })

/** EXIF orientations from which width and height are exchanged. */
const firstTurned = 5

export function showImage(row: ImageRow): Static<typeof Image> {
  const { facts, description } = row
  const isTurned = facts.orientation >= firstTurned
  return {
    id: row.id,
    job_id: row.file_id,
    status: row.status,
    name: row.name,
    visibility: row.visibility,
    format: facts.format,
    bytes: row.bytes,
    sha256: row.sha256.toString('hex'),
    width: description?.width ?? (isTurned ? facts.height : facts.width),
    height: description?.height ?? (isTurned ? facts.width : facts.height),
    frames: facts.frames,
    thumbhash: description?.thumbhash ?? null,
    dominant_colour: description ? `#${description.dominant_colour}` : null,
    has_alpha: description?.has_alpha ?? null,
    variants: row.variants.map(variant => ({ ...variant, url: `/v1/images/${row.id}/${variant.name}` })),
    error: row.error,
    created_at: row.created_at.toISOString(),
    ended_at: row.ended_at?.toISOString() ?? null,
  }
}

/** What a sender calls its file, so that it can stand in a header or a list: the last part of a path, without tricks. */
export function cleanName(name: string | undefined): string | null {
  const last = name?.split(/[/\\]/).at(-1) ?? ''
  const clean = last
    .toWellFormed()
    .replace(/[\x00-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, '')
    .trim()
  return clean === '' || /^\.+$/.test(clean) ? null : [...clean].slice(0, imageNameMax).join('')
}
