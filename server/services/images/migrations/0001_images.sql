-- Up Migration

-- A file that was uploaded, and what was made of it. Its job has the same id. Equal files of one user are one row, as
-- long as nothing is wrong with it.
create table images.files (
  id uuid primary key,
  -- Null where it came over the old contract's open route.
  owner text,
  -- Which variants are made: `presets`, or the one of the old contract.
  profile text not null check (profile in ('presets', 'upload')),
  sha256 bytea not null,
  bytes bigint not null,
  -- What its header says, see ImageFacts in types.ts.
  facts jsonb not null,
  status text not null default 'waiting' check (status in ('waiting', 'processing', 'ready', 'failed', 'refused')),
  attempt smallint not null default 0,
  -- Of the upright image; thumbhash as in its paper.
  description jsonb,
  variants jsonb not null default '[]',
  error text,
  -- Whether an equal upload of its owner becomes an image of this file.
  shared boolean not null,
  created_at timestamptz not null,
  ended_at timestamptz
) with (fillfactor = 70);

create unique index files_equal on images.files (owner, sha256) where shared;

-- What users have: an image is a name for a file.
create table images.images (
  id uuid primary key,
  file_id uuid not null references images.files (id),
  owner text,
  name text,
  visibility text not null check (visibility in ('private', 'public')),
  created_at timestamptz not null
);

create index images_owner on images.images (owner, created_at, id);
create index images_file on images.images (file_id);

-- What happened to a file, numbered 1, 2, 3, …: the live topic of its images.
create table images.events (
  file_id uuid not null references images.files (id) on delete cascade,
  seq integer not null,
  data jsonb not null,
  primary key (file_id, seq)
);

-- Made on the fly and kept: the blob's name says which transform.
create table images.transforms (
  file_id uuid not null references images.files (id) on delete cascade,
  name text not null,
  bytes bigint not null,
  created_at timestamptz not null default now(),
  primary key (file_id, name)
);

-- Bytes of originals, variants and kept transforms, for the bound of each user.
create table images.usage (
  owner text primary key,
  bytes bigint not null
) with (fillfactor = 50);

-- Down Migration

drop table images.usage;
drop table images.transforms;
drop table images.events;
drop table images.images;
drop table images.files;
