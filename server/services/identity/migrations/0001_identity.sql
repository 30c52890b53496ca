-- Up Migration

-- Better Auth writes users, accounts, sessions and verifications too; its names are mapped to these in auth.ts.
create table identity.users (
  id uuid primary key,
  -- The old contracts' integer user id.
  number bigint generated always as identity unique,
  -- What is compared: lower case. `name` is what the user typed.
  username text not null unique check (username = lower(username)),
  name text not null,
  -- Where the user gave none, an address that ends in @users.invalid and is never shown.
  email text not null unique check (email = lower(email)),
  email_verified boolean not null default false,
  image text,
  role text not null default 'user' check (role in ('user', 'admin')),
  -- The Idempotency-Key of the request that made the user.
  registration_key text unique,
  disabled_at timestamptz,
  password_changed_at timestamptz not null default date_trunc('milliseconds', now()),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

create index users_with_registration_key on identity.users (created_at) where registration_key is not null;

-- One row a way to sign in. A password's hash is in the row whose provider_id is `credential`.
create table identity.accounts (
  id uuid primary key,
  account_id text not null,
  provider_id text not null,
  user_id uuid not null references identity.users (id) on delete cascade,
  access_token text,
  refresh_token text,
  id_token text,
  access_token_expires_at timestamptz,
  refresh_token_expires_at timestamptz,
  scope text,
  password text,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (provider_id, account_id)
);

create index accounts_by_user on identity.accounts (user_id);

create table identity.sessions (
  id uuid primary key,
  -- Better Auth's secret of the session. It never leaves the server; refresh tokens are authenticated with it.
  token text not null unique,
  user_id uuid not null references identity.users (id) on delete cascade,
  expires_at timestamptz not null,
  ip_address text,
  user_agent text,
  -- Counts renewals. Only the refresh token of the newest generation renews.
  generation integer not null default 0,
  rotated_at timestamptz,
  last_used_at timestamptz not null default now(),
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

create index sessions_by_user on identity.sessions (user_id, id);
create index sessions_by_expiry on identity.sessions (expires_at);

create table identity.verifications (
  id uuid primary key,
  identifier text not null,
  value text not null,
  expires_at timestamptz not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now()
);

create index verifications_by_identifier on identity.verifications (identifier);

-- Sessions that ended before their time. Every process follows this table; rows are kept while an access token of
-- the session could still be remembered somewhere.
create table identity.revoked_sessions (
  session_id uuid primary key,
  revoked_at timestamptz not null default clock_timestamp()
);

create index revoked_sessions_in_order on identity.revoked_sessions (revoked_at, session_id);

-- A trigger, so that nothing can end a session without every process hearing of it.
create function identity.record_ended_sessions() returns trigger language plpgsql as $$
begin
  insert into identity.revoked_sessions (session_id)
  select id from ended where expires_at > now()
  on conflict do nothing;
  return null;
end
$$;

create trigger sessions_end
  after delete on identity.sessions
  referencing old table as ended
  for each statement execute function identity.record_ended_sessions();

create table identity.api_keys (
  id uuid primary key,
  user_id uuid not null references identity.users (id) on delete cascade,
  name text not null,
  -- SHA-256 of the key. The key has 256 random bits, so that a slow hash would add nothing.
  hash bytea not null unique,
  -- The key's first characters, by which its owner knows it again.
  hint text not null,
  scopes text[] not null,
  expires_at timestamptz,
  last_used_at timestamptz,
  created_at timestamptz not null default now()
);

create index api_keys_by_user on identity.api_keys (user_id, id);

create table identity.signing_keys (
  kid text primary key,
  public_jwk jsonb not null,
  -- AES-256-GCM under a key derived from AUTH_SECRET: 12 bytes nonce, 16 bytes tag, the rest.
  private_key bytea not null,
  created_at timestamptz not null default now()
);

-- Unlogged: counting costs no flush to disk, and after a crash everybody has their whole allowance again.
create unlogged table identity.login_attempts (
  subject text primary key,
  attempts integer not null,
  resets_at timestamptz not null
);

create index login_attempts_by_reset on identity.login_attempts (resets_at);

-- Down Migration

drop table identity.login_attempts;
drop table identity.signing_keys;
drop table identity.api_keys;
drop table identity.sessions;
drop function identity.record_ended_sessions();
drop table identity.revoked_sessions;
drop table identity.verifications;
drop table identity.accounts;
drop table identity.users;
