import type { FastifyRequest } from 'fastify'
import type { Caller } from '../http/guard.ts'
import { errors } from './errors.ts'
import { isRefusal } from './topics.ts'

/**
 * A browser sends its cookies with a WebSocket handshake from any page, and no CORS stands in the way. So a caller
 * known by a cookie must come from a page of our own. A bearer header no page can set.
 * @throws cross_site
 */
export function checkOrigin(request: FastifyRequest, publicUrl: string | undefined) {
  const { cookie, authorization, origin } = request.headers
  if (request.caller === undefined || cookie === undefined || /^bearer /i.test(authorization ?? '')) return
  if (origin === undefined || !URL.canParse(origin)) throw errors.crossSite()
  const page = new URL(origin)
  if (page.host === request.host.toLowerCase()) return
  if (publicUrl !== undefined && page.origin === new URL(publicUrl).origin) return
  throw errors.crossSite()
}

/** The caller as the credential stands now, `undefined` when it was revoked; unchanged when nobody can tell just now. */
export async function renewCaller(
  caller: Caller,
  recall: () => Promise<Caller | undefined>,
): Promise<Caller | undefined> {
  try {
    const renewed = await recall()
    return renewed?.userId === caller.userId ? renewed : undefined
  } catch (error) {
    return isRefusal(error) ? undefined : caller
  }
}
