import { integer, type Settings, type SettingsTable } from '#platform/config.ts'

export const chatSettings = {
  CHAT_SENDS_PER_MINUTE: integer(
    1200,
    { min: 0, max: 100_000_000 },
    'Messages a user may send a minute; 0 is no limit.',
  ),
  CHAT_SENDS_PER_MINUTE_PER_CHAT: integer(
    6000,
    { min: 0, max: 100_000_000 },
    'Messages a chat takes a minute, from all its members; 0 is no limit.',
  ),
  CHAT_MEMBERS_MAX: integer(10_000, { min: 2, max: 1_000_000 }, 'Most members of a room.'),
  CHAT_CHANGES_DAYS: integer(
    30,
    { min: 1, max: 3650 },
    'How long edits, deletions and reactions can be followed after the fact, in days.',
  ),
} satisfies SettingsTable

export type ChatSettings = Settings<typeof chatSettings>
