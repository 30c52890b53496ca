/** What happens to every call before its first message is read. */
import type { DescMethod } from '@bufbuild/protobuf'
import type { HandlerContext } from '@connectrpc/connect'
import { errors } from '../errors.ts'
import { type Authenticate, admit, asBearer } from '../http/guard.ts'
import type { RateLimiter } from '../http/rate-limit.ts'
import { renewCaller } from '../live/access.ts'
import { type Call, callOf } from './call.ts'
import type { MethodRule } from './rpc.ts'
import { statusOf, toStatus } from './status.ts'

const endedMessage = 'This token or key has ended. Open a new stream with another.'

export function makeGate(given: {
  authenticate: Authenticate
  rateLimiter: RateLimiter
  /** How often the credential of a stream is looked at again. */
  recheckMs: number
  ruleOf: (method: DescMethod) => MethodRule
}) {
  const { authenticate, rateLimiter } = given

  async function enter(context: HandlerContext, call: Call) {
    const rule = given.ruleOf(context.method)
    if (rule.access !== 'public') {
      const authorization = context.requestHeader.get('authorization')
      call.caller = await identify(call, authorization)
      admit(call.caller, rule.access, rule.scope)
      if (authorization !== null && context.method.methodKind !== 'unary') keepChecking(context, call, authorization)
    }
    if (!rule.isOperation) await rateLimiter.take(call.caller?.userId ?? call.address)
  }

  async function identify(call: Call, authorization: string | null) {
    if (authorization === null) return undefined
    try {
      return await authenticate(asBearer(authorization))
    } catch (error) {
      // Counts a refused credential against whoever sent it.
      await rateLimiter.take(call.address)
      throw error
    }
  }

  /** A stream may outlive its credential. */
  function keepChecking(context: HandlerContext, call: Call, authorization: string) {
    const timer = setInterval(async () => {
      const renewed = await renewCaller(call.caller!, () => authenticate(asBearer(authorization)))
      if (renewed === undefined) call.end(statusOf(errors.unauthenticated(endedMessage)))
    }, given.recheckMs)
    timer.unref()
    context.signal.addEventListener('abort', () => clearInterval(timer), { once: true })
  }

  return async (context: HandlerContext) => {
    const call = callOf(context)
    context.responseHeader.set('x-request-id', call.requestId)
    try {
      await enter(context, call)
    } catch (error) {
      throw toStatus(error, call.log)
    }
  }
}
