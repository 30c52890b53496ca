import type { Redis } from 'ioredis'
import { makeRateLimiter } from '#platform/http/rate-limit.ts'
import type { ChatSettings } from './settings.ts'

export interface ChatLimits {
  /** One message. @throws rate_limited */
  take(given: { personId: number; chatId: string }): Promise<void>
}

const windowSeconds = 60

export function makeChatLimits({ settings, redis }: { settings: ChatSettings; redis: Redis | undefined }): ChatLimits {
  const ofPeople = makeRateLimiter({
    name: 'chat-person',
    points: settings.CHAT_SENDS_PER_MINUTE,
    windowSeconds,
    redis,
  })
  const ofChats = makeRateLimiter({
    name: 'chat',
    points: settings.CHAT_SENDS_PER_MINUTE_PER_CHAT,
    windowSeconds,
    redis,
  })
  return {
    async take({ personId, chatId }) {
      await ofPeople.take(String(personId))
      await ofChats.take(chatId)
    },
  }
}
