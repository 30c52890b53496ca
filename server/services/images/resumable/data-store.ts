import type { Readable } from 'node:stream'
import { DataStore, Metadata, Upload } from '@tus/server'
import type { Caller } from '#platform/http/guard.ts'
import type { UploadRow } from './store.ts'
import { refusalOf, type Uploads } from './uploads.ts'

/** Of the tus protocol, beyond its core. */
export const extensions = ['creation', 'creation-with-upload', 'creation-defer-length', 'expiration', 'termination']

/** What the tus server asks of a store, for one request of a caller. */
export class UploadStore extends DataStore {
  override extensions = extensions
  readonly #uploads: Uploads
  readonly #caller: Caller
  readonly #metadata: string | undefined
  readonly #lifeMs: number
  /** As it stood when this request asked. */
  #upload: Pick<UploadRow, 'id' | 'at' | 'parts'> | undefined

  /** @param given `metadata` is the header as it came */
  constructor(given: { uploads: Uploads; caller: Caller; metadata: string | undefined; lifeMs: number }) {
    super()
    this.#uploads = given.uploads
    this.#caller = given.caller
    this.#metadata = given.metadata
    this.#lifeMs = given.lifeMs
  }

  override async create(upload: Upload): Promise<Upload> {
    const metadata = this.#metadata === undefined ? undefined : { text: this.#metadata, fields: upload.metadata ?? {} }
    await this.#uploads.create({ id: upload.id, caller: this.#caller, length: upload.size, metadata })
    this.#upload = { id: upload.id, at: 0, parts: 0 }
    return upload
  }

  override async getUpload(id: string): Promise<Upload> {
    const row = await this.#uploads.getUpload(this.#caller, id)
    const refusal = refusalOf(row)
    if (refusal) throw refusal
    this.#upload = row
    return new Upload({
      id,
      ...(row.length === null ? {} : { size: row.length }),
      offset: row.at,
      ...(row.metadata === null ? {} : { metadata: Metadata.parse(row.metadata) }),
      creation_date: row.created_at.toISOString(),
    })
  }

  override async declareUploadLength(id: string, length: number) {
    await this.#uploads.setLength(id, length)
  }

  override async write(source: Readable): Promise<number> {
    return this.#uploads.append({ upload: this.#upload!, source })
  }

  override async remove(id: string) {
    await this.#uploads.remove(this.#caller, id)
  }

  override getExpiration(): number {
    return this.#lifeMs
  }
}
