/** One request of the tus protocol, answered by `@tus/server`: what it says in plain text comes out as our errors. */
import { ERRORS, type Locker, Server } from '@tus/server'
import type { AppError } from '#platform/errors.ts'
import { errors as imageErrors } from '../errors.ts'
import type { UploadStore } from './data-store.ts'
import { errors } from './errors.ts'

export const tusVersion = '1.0.0'
export const uploadsPath = '/v1/uploads'
export const pieceType = 'application/offset+octet-stream'

export interface TusRequest {
  /** What is wanted, which X-HTTP-Method-Override may say instead of the request's own method. */
  method: string
  headers: Readonly<Record<string, string | string[] | undefined>>
  /** Of an upload that is there. */
  id: string | undefined
  body: ReadableStream | undefined
}

export interface TusOptions {
  store: UploadStore
  locker: Locker
  bytesMax: number
  makeId: () => string
  /** Called when an upload's last byte is there. Answers headers. */
  onWhole: (id: string) => Promise<Record<string, string>>
}

/** What a request that holds an upload may still do when another one asks for it. */
const drainMs = 200

/** @throws the error to be answered */
export async function answerTus(request: TusRequest, options: TusOptions): Promise<Response> {
  let thrown: unknown
  // One for each request: the store knows who calls, and the error stays with its request.
  const server = new Server({
    path: uploadsPath,
    datastore: options.store,
    locker: options.locker,
    lockDrainTimeout: drainMs,
    maxSize: options.bytesMax,
    relativeLocation: true,
    // No page of another origin is let in, here as elsewhere.
    allowedOrigins: () => false,
    namingFunction: options.makeId,
    getFileIdFromRequest: () => request.id,
    onUploadFinish: async (_request, upload) => ({ headers: await options.onWhole(upload.id) }),
    onResponseError: (_request, error) => {
      thrown = error
      return undefined
    },
  })
  const response = await server.handleWeb(toWebRequest(request))
  if (thrown !== undefined) throw translate(thrown, options.bytesMax)
  if (response.status >= 400) throw errors.requestInvalid(await response.text())
  return response
}

/** Those the protocol knows: others, such as X-Forwarded-Proto, are our server's to judge. */
const passedHeaders = /^(tus-|upload-|content-(type|length)$)/

function toWebRequest({ method, headers, id, body }: TusRequest): Request {
  const passed = Object.entries(headers).flatMap(([name, value]): [string, string][] =>
    passedHeaders.test(name) && typeof value === 'string' ? [[name, value]] : [],
  )
  // The host stands for itself: answers name paths.
  const url = new URL(id === undefined ? uploadsPath : `${uploadsPath}/${id}`, 'http://capstan')
  const init = { method, headers: passed, body: body ?? null, ...(body ? { duplex: 'half' } : {}) }
  return new Request(url, init as RequestInit)
}

interface TusError {
  status_code: number
  body: string
}

function translate(error: unknown, bytesMax: number): unknown {
  const known = translations.get(error as TusError)
  if (known) return known(bytesMax)
  const { status_code: status, body } = error as Partial<TusError>
  if (status === ERRORS.ERR_MAX_SIZE_EXCEEDED.status_code) return errors.lengthExceeded()
  if (status !== undefined && body !== undefined) return errors.requestInvalid(body.trim())
  return error
}

const translations = new Map<TusError, (bytesMax: number) => AppError>([
  [ERRORS.FILE_NOT_FOUND, errors.uploadNotFound],
  [ERRORS.FILE_NO_LONGER_EXISTS, errors.uploadExpired],
  [ERRORS.INVALID_OFFSET, errors.offsetWrong],
  [ERRORS.ERR_SIZE_EXCEEDED, errors.lengthExceeded],
  [ERRORS.ERR_MAX_SIZE_EXCEEDED, imageErrors.bytesExceeded],
  [ERRORS.ERR_LOCK_TIMEOUT, errors.uploadBusy],
  [ERRORS.ABORTED, errors.uploadBusy],
])
