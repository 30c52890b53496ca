import { S3Client, type S3ClientConfig } from '@aws-sdk/client-s3'
import { SettingsError } from '../config.ts'
import type { Trouble } from './outage.ts'
import type { BucketTarget } from './url.ts'

export interface S3Times {
  connectMs: number
  /** Until the answer to a request begins, its body sent. */
  answerMs: number
  /** Between two pieces of a body. */
  idleMs: number
}

export const s3Times: S3Times = { connectMs: 3_000, answerMs: 20_000, idleMs: 20_000 }
const attemptsMax = 3
const connectionsMax = 64

/** @throws SettingsError where nothing names the region */
export async function makeS3Client(given: {
  target: BucketTarget
  keys: { id: string; secret: string } | undefined
  times: S3Times
}): Promise<S3Client> {
  const { target, keys, times } = given
  const config: S3ClientConfig = {
    forcePathStyle: target.pathStyle,
    maxAttempts: attemptsMax,
    // The newer checksums are unknown to many servers. The signature covers each body's SHA-256 as it is.
    requestChecksumCalculation: 'WHEN_REQUIRED',
    responseChecksumValidation: 'WHEN_REQUIRED',
    requestHandler: {
      connectionTimeout: times.connectMs,
      requestTimeout: times.answerMs,
      throwOnRequestTimeout: true,
      // It would cut off a reader that takes its time; bodies have a limit of our own.
      socketTimeout: 0,
      // More wait for a connection than the SDK finds worth no warning.
      socketAcquisitionWarningTimeout: times.answerMs,
      httpAgent: { maxSockets: connectionsMax },
      httpsAgent: { maxSockets: connectionsMax },
    },
  }
  if (target.endpoint) config.endpoint = target.endpoint
  if (target.region) config.region = target.region
  if (keys) config.credentials = { accessKeyId: keys.id, secretAccessKey: keys.secret }
  const client = new S3Client(config)
  try {
    await client.config.region()
  } catch {
    client.destroy()
    throw new SettingsError(['BLOB_URL names no region, nor does AWS_REGION: add ?region= to BLOB_URL.'])
  }
  return client
}

interface Failure {
  name?: string
  code?: string
  $metadata?: { httpStatusCode?: number }
}

const fullNames = ['ENOSPC', 'EDQUOT', 'QuotaExceeded', 'QuotaExceededException', 'XMinioStorageFull']
const refusedNames = [
  'AuthorizationHeaderMalformed',
  'CredentialsProviderError',
  'InvalidAccessKeyId',
  'NoSuchBucket',
  'PermanentRedirect',
  'SignatureDoesNotMatch',
]
const insufficientStorage = 507

/** Whatever a request to the store fails with is trouble of the store, unless it is a bug of ours. */
export function s3TroubleOf(error: unknown): Trouble | undefined {
  const { name = '', code = '', $metadata } = (error ?? {}) as Failure
  const status = $metadata?.httpStatusCode
  if (status === insufficientStorage || fullNames.includes(name) || fullNames.includes(code)) return 'full'
  if (status === 301 || status === 401 || status === 403 || refusedNames.includes(name)) return 'refused'
  const isOfStore = $metadata !== undefined || name === 'TimeoutError' || (code !== '' && !/^ERR_(ASS|INV)/.test(code))
  return isOfStore ? 'away' : undefined
}

/** Undefined where there is no such blob; a bucket that is not there is another matter. */
export async function unlessMissing<T>(answer: Promise<T>): Promise<T | undefined> {
  try {
    return await answer
  } catch (error) {
    if (['NoSuchKey', 'NotFound'].includes((error as Failure).name ?? '')) return undefined
    throw error
  }
}
