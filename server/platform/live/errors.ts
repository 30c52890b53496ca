import { AppError } from '../errors.ts'

/** Live's catalogue. Over a WebSocket they come as `{"type":"error","code","message",…}`. */
export const errors = {
  badFrame: (message: string) => new AppError({ code: 'bad_frame', status: 400, message }),
  badTopic: () =>
    new AppError({
      code: 'bad_topic',
      status: 400,
      message: 'A topic is `<kind>/<id>`, such as `runs/0190a6e2-7d60-7b5c-8f7e-0123456789ab`.',
    }),
  badPosition: (message: string) => new AppError({ code: 'bad_position', status: 400, message }),
  unknownTopic: (kind: string) =>
    new AppError({ code: 'unknown_topic', status: 404, message: `There are no topics of the kind \`${kind}\` here.` }),
  unknownCall: (name: string) =>
    new AppError({ code: 'unknown_call', status: 404, message: `There is no call \`${name}\` here.` }),
  tooManyTopics: (limit: number) =>
    new AppError({
      code: 'too_many_topics',
      status: 400,
      message: `A connection follows at most ${limit} topics.`,
      details: { limit },
    }),
  alreadyFollowed: () =>
    new AppError({
      code: 'already_subscribed',
      status: 409,
      message: 'This connection follows the topic already. Unsubscribe first to follow it from elsewhere.',
    }),
  otherUser: () =>
    new AppError({
      code: 'other_user',
      status: 409,
      message: 'This token is another user’s. A connection stays with the user it began with.',
    }),
  tooManyFrames: (perSecond: number) =>
    new AppError({
      code: 'too_many_frames',
      status: 429,
      message: `A connection may send ${perSecond} frames a second.`,
      retryAfterSeconds: 1,
    }),
  crossSite: () =>
    new AppError({
      code: 'cross_site',
      status: 403,
      message: 'With a cookie, a page of another origin may not connect. Send a token in an `auth` frame instead.',
    }),
  upgradeRequired: () =>
    new AppError({
      code: 'upgrade_required',
      status: 426,
      message: 'This route is a WebSocket. For plain HTTP there is /v1/live/events.',
    }),
  full: () =>
    new AppError({
      code: 'overloaded',
      status: 503,
      message: 'This process holds as many live connections as it may. Try again shortly.',
      retryAfterSeconds: 2,
    }),
  stopping: () =>
    new AppError({ code: 'unavailable', status: 503, message: 'The server is stopping.', retryAfterSeconds: 1 }),
}
