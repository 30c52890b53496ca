-- Up Migration

-- An upload that may come in pieces. Its image gets the same id.
create table images.uploads (
  id uuid primary key,
  owner text not null,
  -- Of the whole file, in bytes; null until the sender says it.
  length bigint check (length >= 0),
  -- Bytes that came and are durable.
  at bigint not null default 0,
  parts integer not null default 0,
  -- The header Upload-Metadata as it came.
  metadata text,
  name text,
  visibility text not null check (visibility in ('private', 'public')),
  status text not null default 'receiving' check (status in ('receiving', 'finished', 'refused')),
  -- Where it was refused: the error's code, status, message and details.
  error jsonb,
  created_at timestamptz not null,
  expires_at timestamptz not null,
  ended_at timestamptz,
  check (at <= length)
) with (fillfactor = 70);

create index uploads_open on images.uploads (owner) where status = 'receiving';
create index uploads_expiry on images.uploads (expires_at);

-- Pieces of uploads, each a blob: together they are the file's bytes from 0 to `at`, without gaps.
create table images.upload_parts (
  upload_id uuid not null references images.uploads (id) on delete cascade,
  at bigint not null,
  bytes bigint not null check (bytes > 0),
  -- The last word of the blob's key.
  blob text not null,
  primary key (upload_id, at)
);

-- Down Migration

drop table images.upload_parts;
drop table images.uploads;
