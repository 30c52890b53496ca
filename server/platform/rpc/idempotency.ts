import { createHash } from 'node:crypto'
import type { HandlerContext } from '@connectrpc/connect'
import { checkKey, type IdempotencyKey } from '../http/idempotency.ts'
import { callOf } from './call.ts'

/** The key of a single call: of its message, or else of the metadata `idempotency-key`. Empty is none. */
export function keyTextOf(context: HandlerContext, inMessage: string): string | undefined {
  const text = inMessage || context.requestHeader.get('idempotency-key') || undefined
  return text === undefined ? undefined : checkKey(text)
}

/**
 * @param content what makes two requests the same, besides the method: the same values in the same order
 * @throws bad_idempotency_key
 */
export function idempotencyKeyOf(
  context: HandlerContext,
  { inMessage, content }: { inMessage: string; content: unknown },
): IdempotencyKey | undefined {
  const key = keyTextOf(context, inMessage)
  if (key === undefined) return undefined
  const fingerprint = createHash('sha256')
    .update(`${context.service.typeName}/${context.method.name}\n`)
    .update(JSON.stringify(content))
    .digest()
  return { owner: callOf(context).caller?.userId ?? '', key, fingerprint }
}
