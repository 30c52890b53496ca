-- Up Migration

-- Keys that Capstan made for itself and that its processes share, by service and use.
create table platform.secrets (
  name text primary key,
  value bytea not null
);

-- Down Migration

drop table platform.secrets;
