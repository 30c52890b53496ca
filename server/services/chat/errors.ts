import { AppError } from '#platform/errors.ts'

export const errors = {
  textEmpty: () => new AppError({ code: 'text_empty', status: 400, message: 'A message needs a `text`.' }),
  textTooLong: (bytesMax: number) =>
    new AppError({
      code: 'text_too_long',
      status: 400,
      message: `The text is longer than ${bytesMax} bytes in UTF-8.`,
      details: { bytes_max: bytesMax },
    }),
  badText: (field: string) =>
    new AppError({
      code: 'bad_text',
      status: 400,
      message: `\`${field}\` holds a NUL character or half of a surrogate pair.`,
      details: { field },
    }),
  badClientId: (charsMax: number) =>
    new AppError({
      code: 'bad_client_id',
      status: 400,
      message: `A \`client_id\` is 1 to ${charsMax} printable ASCII characters.`,
    }),
  clientIdReused: () =>
    new AppError({
      code: 'client_id_reused',
      status: 422,
      message: 'You sent another message with this client id (or Idempotency-Key) to this chat. Use a new one.',
    }),
  badReplyTo: () =>
    new AppError({
      code: 'bad_reply_to',
      status: 400,
      message: '`reply_to` must be the number of a message that the chat has.',
    }),
  badMentions: (max: number) =>
    new AppError({ code: 'bad_mentions', status: 400, message: `\`mentions\` is a list of at most ${max} usernames.` }),
  mentionNotMember: (username: string) =>
    new AppError({
      code: 'mention_not_member',
      status: 400,
      message: `Nobody called ${username.slice(0, 100)} is a member of this chat, so it cannot be mentioned.`,
      details: { username: username.slice(0, 100) },
    }),
  badAttachments: (max: number) =>
    new AppError({
      code: 'bad_attachments',
      status: 400,
      message: `\`attachments\` is a list of at most ${max} ids of images, which are UUIDs.`,
    }),
  unknownField: (field: string) =>
    new AppError({
      code: 'unknown_field',
      status: 400,
      message: `\`${field.slice(0, 100)}\` is not a known field here.`,
      details: { field: field.slice(0, 100) },
    }),
  notAnObject: () => new AppError({ code: 'not_an_object', status: 400, message: 'This takes a JSON object.' }),
  badNumber: (field: string) =>
    new AppError({
      code: 'bad_message_number',
      status: 400,
      message: `\`${field}\` must be a whole number, 0 or more: the number of a message.`,
      details: { field },
    }),
  badLimit: (max: number) =>
    new AppError({
      code: 'bad_limit',
      status: 400,
      message: `\`limit\` must be a whole number from 1 to ${max}.`,
      details: { limit_max: max },
    }),
  badTime: (field: string) =>
    new AppError({
      code: 'bad_time',
      status: 400,
      message: `\`${field}\` must be a time such as 2026-02-03T12:30:00Z.`,
      details: { field },
    }),
  badFlag: (field: string) =>
    new AppError({ code: 'bad_flag', status: 400, message: `\`${field}\` is true or false.`, details: { field } }),
  twoPositions: () =>
    new AppError({
      code: 'two_positions',
      status: 400,
      message: 'Give one of `after`, `before`, `around`, `from_time` and `until_time`.',
    }),
  badQuery: (charsMax: number) =>
    new AppError({
      code: 'bad_query',
      status: 400,
      message: `\`q\` is a text of 1 to ${charsMax} characters that holds at least one word.`,
    }),
  searchTooBroad: () =>
    new AppError({
      code: 'search_too_broad',
      status: 503,
      message: 'Too much was found to be put in order in time. Look for rarer words or in one chat.',
      retryAfterSeconds: 10,
    }),
  badChatName: (charsMax: number) =>
    new AppError({ code: 'bad_chat_name', status: 400, message: `A room's name is 1 to ${charsMax} characters.` }),
  badKind: () => new AppError({ code: 'bad_kind', status: 400, message: '`kind` is direct or room.' }),
  badUsername: (field: string) =>
    new AppError({
      code: 'bad_chat_username',
      status: 400,
      message: `\`${field}\` must be a username.`,
      details: { field },
    }),
  tooManyMembers: (max: number) =>
    new AppError({
      code: 'too_many_members',
      status: 400,
      message: `At most ${max} members can be named at once; add the others afterwards.`,
    }),
  chatNotFound: () => new AppError({ code: 'chat_not_found', status: 404, message: 'There is no such chat.' }),
  messageNotFound: () =>
    new AppError({ code: 'message_not_found', status: 404, message: 'The chat has no message with this number.' }),
  userNotFound: (username: string) =>
    new AppError({
      code: 'user_not_found',
      status: 404,
      message: `There is no user called ${username.slice(0, 100)}.`,
      details: { username: username.slice(0, 100) },
    }),
  memberNotFound: (username: string) =>
    new AppError({
      code: 'member_not_found',
      status: 404,
      message: `${username.slice(0, 100)} is not a member of this chat.`,
      details: { username: username.slice(0, 100) },
    }),
  notAMember: () => new AppError({ code: 'not_a_member', status: 403, message: 'You are not a member of this chat.' }),
  blocked: () =>
    new AppError({ code: 'blocked', status: 403, message: 'This user has blocked you: nothing reaches it from you.' }),
  selfChat: () =>
    new AppError({ code: 'self_chat', status: 400, message: 'A direct chat is with somebody else than yourself.' }),
  selfBlock: () => new AppError({ code: 'self_block', status: 400, message: 'You cannot block yourself.' }),
  notARoom: () =>
    new AppError({ code: 'not_a_room', status: 409, message: 'This is a direct chat: its two members stay.' }),
  roleTooLow: (needed: string) =>
    new AppError({
      code: 'role_too_low',
      status: 403,
      message: `Only ${needed} may do this.`,
      details: { needed },
    }),
  invitationNeeded: () =>
    new AppError({
      code: 'invitation_needed',
      status: 403,
      message: 'This room is not open. A member with the right can add you or give you an invitation.',
    }),
  invitationOver: () =>
    new AppError({
      code: 'invitation_over',
      status: 404,
      message: 'There is no such invitation, it has expired or it is used up. Ask for a new one.',
    }),
  badInvitation: (secondsMax: number, usesMax: number) =>
    new AppError({
      code: 'bad_invitation',
      status: 400,
      message: `\`expires_in_seconds\` is 60 to ${secondsMax} and \`uses\` is 1 to ${usesMax}, whole numbers.`,
    }),
  ownerMustHandOver: () =>
    new AppError({
      code: 'owner_must_hand_over',
      status: 409,
      message: 'Make another member the owner first: `PATCH …/members/<username>` with `{"role":"owner"}`.',
    }),
  badRole: () => new AppError({ code: 'bad_role', status: 400, message: '`role` is owner, moderator or member.' }),
  roomFull: (max: number) =>
    new AppError({ code: 'room_full', status: 409, message: `The room has its ${max} members.` }),
  notTheSender: () =>
    new AppError({ code: 'not_the_sender', status: 403, message: 'Only who sent a message may edit it.' }),
  messageFixed: () =>
    new AppError({
      code: 'message_fixed',
      status: 409,
      message: 'A message that was deleted, or that tells what happened in the room, cannot be changed.',
    }),
  badEmoji: (bytesMax: number) =>
    new AppError({
      code: 'bad_emoji',
      status: 400,
      message: `A reaction is a text of 1 to ${bytesMax} bytes in UTF-8 without white space.`,
    }),
  tooManyReactions: (max: number) =>
    new AppError({
      code: 'too_many_reactions',
      status: 409,
      message: `A message has at most ${max} kinds of reactions.`,
    }),
  notTwoMembers: () =>
    new AppError({
      code: 'not_two_members',
      status: 400,
      message: '`chat` must be two different members, joined by a colon: `<member1>:<member2>`.',
    }),
  senderNotInChat: () =>
    new AppError({
      code: 'sender_not_in_chat',
      status: 400,
      message: '`sender` must be one of the two members that `chat` names.',
    }),
  tooSlow: () =>
    new AppError({
      code: 'too_slow',
      status: 429,
      message: 'You read too slowly. Subscribe again with the last number you have; nothing is lost.',
      retryAfterSeconds: 1,
    }),
  foreignSender: () =>
    new AppError({ code: 'foreign_sender', status: 403, message: '`sender` must be you: you are logged in.' }),
}
