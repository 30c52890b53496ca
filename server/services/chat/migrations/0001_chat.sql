-- Up Migration

-- Everybody who can be in a chat, under a number that keeps messages small. `name` is in lower case, `shown` as its
-- owner writes it. Whoever has no user id was named by the old contract's open route; the user who registers that name
-- gets the person, and its messages, then.
create table chat.people (
  id bigint generated always as identity primary key,
  user_id text unique,
  name text not null unique,
  shown text not null
);

-- Updated by every batch of messages: room is left in each page and no index holds what changes, so that updates stay
-- heap-only. `last_seq` numbers messages and `change_seq` changes of earlier ones, both without a gap, as both are
-- raised under the row's lock. `last_at` never goes back, whatever clock a process has. Of a direct chat, `low_blocked`
-- and `high_blocked` say who was blocked by the other.
create table chat.chats (
  id uuid primary key,
  kind text not null check (kind in ('direct', 'room')),
  name text,
  is_open boolean not null default false,
  low_id bigint,
  high_id bigint,
  low_blocked boolean not null default false,
  high_blocked boolean not null default false,
  last_seq bigint not null default 0,
  change_seq bigint not null default 0,
  members integer not null default 0,
  created_at timestamptz not null,
  last_at timestamptz not null,
  check ((kind = 'direct') = (low_id is not null and high_id is not null and low_id < high_id)),
  check ((kind = 'room') = (name is not null))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

create unique index chats_pair on chat.chats (low_id, high_id) where low_id is not null;
create index chats_open on chat.chats (lower(name) text_pattern_ops, id) where is_open;

-- Who is or was in a chat. `read_seq` and `delivered_seq` only rise.
create table chat.members (
  chat_id uuid not null,
  person_id bigint not null,
  role text not null check (role in ('owner', 'moderator', 'member')),
  joined_at timestamptz not null,
  left_at timestamptz,
  read_seq bigint not null default 0,
  delivered_seq bigint not null default 0,
  muted_until timestamptz,
  primary key (chat_id, person_id)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);

create index members_person on chat.members (person_id, chat_id) where left_at is null;
create unique index members_owner on chat.members (chat_id) where role = 'owner' and left_at is null;

-- No foreign keys: chats and people are never deleted, a batch has locked the chats it writes to, and a check a row
-- costs more than the row. `details` holds what most messages have none of: mentions, attachments, what a system
-- message tells. `reactions` counts by emoji what chat.reactions holds a row each.
create table chat.messages (
  chat_id uuid not null,
  seq bigint not null,
  sender_id bigint not null,
  created_at timestamptz not null,
  edited_at timestamptz,
  deleted_at timestamptz,
  reply_to bigint,
  edits integer not null default 0,
  kind text not null check (kind in ('text', 'system')),
  text text not null,
  client_id text,
  fingerprint uuid,
  details jsonb,
  reactions jsonb,
  primary key (chat_id, seq)
) with (autovacuum_vacuum_insert_scale_factor = 0.1);

create unique index messages_client on chat.messages (chat_id, sender_id, client_id) where client_id is not null;

create table chat.reactions (
  chat_id uuid not null,
  seq bigint not null,
  person_id bigint not null,
  emoji text not null,
  primary key (chat_id, seq, person_id, emoji)
);

-- What became of earlier messages and of members, for the live topics `chat-changes/<id>`. Kept for a while.
create table chat.changes (
  chat_id uuid not null,
  seq bigint not null,
  type text not null,
  message_seq bigint,
  data jsonb,
  ends text,
  created_at timestamptz not null,
  primary key (chat_id, seq)
);

create index changes_age on chat.changes (created_at);

create table chat.blocks (
  blocker_id bigint not null,
  blocked_id bigint not null,
  created_at timestamptz not null,
  primary key (blocker_id, blocked_id)
);

-- By the SHA-256 of their codes.
create table chat.invitations (
  digest bytea primary key,
  chat_id uuid not null,
  made_by bigint not null,
  uses_left integer not null check (uses_left >= 0),
  expires_at timestamptz not null
);

create index invitations_chat on chat.invitations (chat_id);
create index invitations_age on chat.invitations (expires_at);

-- The ranges of messages that a batch wrote or changed, until they can be found.
create table chat.unindexed (
  id bigint generated always as identity primary key,
  messages integer not null,
  chat_ids uuid[] not null,
  first_seqs bigint[] not null,
  last_seqs bigint[] not null
);

-- What is searched: a message's words and, as one more word, the stretch of its chat that it lies in, so that one look
-- into the index finds a word in a stretch without reading what other chats have of it.
create table chat.search (
  chat_id uuid not null,
  seq bigint not null,
  created_at timestamptz not null,
  words tsvector not null,
  primary key (chat_id, seq)
);

create index search_words on chat.search using gin (words) with (fastupdate = on);

-- The number of the newest message before an instant: times rise with the numbers, so halving finds it.
create function chat.seq_before(asked uuid, instant timestamptz) returns bigint language plpgsql stable as $$
declare
  low bigint := 0;
  high bigint := (select last_seq from chat.chats where id = asked);
  middle bigint;
  happened timestamptz;
begin
  while low < high loop
    middle := (low + high + 1) / 2;
    select m.created_at into happened from chat.messages m where m.chat_id = asked and m.seq = middle;
    if happened < instant then low := middle; else high := middle - 1; end if;
  end loop;
  return low;
end $$;

-- Down Migration

drop function chat.seq_before(uuid, timestamptz);
drop table chat.search;
drop table chat.unindexed;
drop table chat.invitations;
drop table chat.blocks;
drop table chat.changes;
drop table chat.reactions;
drop table chat.messages;
drop table chat.members;
drop table chat.chats;
drop table chat.people;
