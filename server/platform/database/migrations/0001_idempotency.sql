-- Up Migration

-- What was answered to a request that carried an Idempotency-Key, written in the transaction that did its work.
create table platform.idempotency_keys (
  owner text not null,
  key text not null,
  fingerprint bytea not null,
  status smallint,
  body jsonb,
  created_at timestamptz not null default now(),
  primary key (owner, key)
);

create index idempotency_keys_age on platform.idempotency_keys using brin (created_at);

-- Down Migration

drop table platform.idempotency_keys;
