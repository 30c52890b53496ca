#!/bin/sh
# Installs Apache Kafka for tests: its Maven artifacts, and Java and Maven from Debian where they are missing.
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/common.sh"

version=4.1.1
log4j_version=2.24.3 # What this Kafka logs with; it names it only in its tarball.
java_needed=17
folder=$cache/kafka

java_major() {
  java -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p'
}

has_java() {
  has java && [ "$(java_major)" -ge $java_needed ] 2>/dev/null
}

ensure_java() {
  has_java || install_debian openjdk-17-jre-headless || true
  has_java || fail "Kafka needs Java $java_needed or newer, which is not here and could not be installed."
}

ensure_maven() {
  has mvn || install_debian maven || true
  has mvn || fail 'Kafka is fetched with Maven, which is not here and could not be installed.'
}

write_pom() {
  cat >"$work/pom.xml" <<XML
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>capstan</groupId><artifactId>kafka-for-tests</artifactId><version>1</version><packaging>pom</packaging>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version></dependency>
    <dependency>
      <groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>$log4j_version</version>
    </dependency>
  </dependencies>
</project>
XML
}

fetch() {
  write_pom
  quietly mvn -B -q -f "$work/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$folder/libs" ||
    fail "Maven could not fetch Kafka $version; its words are above."
}

# log4j's: what is worth a line, on stdout.
write_logging() {
  cat >"$folder/log4j2.properties" <<'CONFIG'
rootLogger.level=WARN
rootLogger.appenderRef.out.ref=out
logger.start.name=kafka.server.KafkaRaftServer
logger.start.level=INFO
appender.out.type=Console
appender.out.name=out
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m (%c)%n%ex
CONFIG
}

# Java reads its arguments from this file. A short start matters more here than a fast server.
write_arguments() {
  class_path=$(find "$folder/libs" -name '*.jar' | sort | tr '\n' ':')
  cat >"$folder/java.args" <<ARGUMENTS
-Xmx256m -Xms64m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.awt.headless=true
"-Dlog4j2.configurationFile=$folder/log4j2.properties"
-cp "${class_path%:}"
ARGUMENTS
}

# A data folder is formatted once, here, and copied by each test.
write_formatted() {
  cat >"$work/server.properties" <<CONFIG
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@127.0.0.1:$((port + 1))
listeners=PLAINTEXT://127.0.0.1:$port,CONTROLLER://127.0.0.1:$((port + 1))
controller.listener.names=CONTROLLER
log.dirs=$folder/formatted
CONFIG
  quietly java "@$folder/java.args" kafka.tools.StorageTool format -c "$work/server.properties" \
    -t "$(java "@$folder/java.args" kafka.tools.StorageTool random-uuid 2>/dev/null)" ||
    fail 'Kafka could not format a data folder; its words are above.'
}

# Kafka spends most of its start on loading classes: one run writes them into an archive that later ones map, which
# halves it. Without it all works the same, so that nothing here is a failure.
write_archive() {
  sed "s|^log.dirs=.*|log.dirs=$work/data|" "$work/server.properties" >"$work/once.properties"
  cp -R "$folder/formatted" "$work/data"
  : >"$work/once.log"
  java -XX:ArchiveClassesAtExit="$folder/kafka.jsa" "@$folder/java.args" kafka.Kafka "$work/once.properties" \
    >"$work/once.log" 2>&1 </dev/null &
  kafka=$!
  trap 'kill $kafka 2>/dev/null || true; rm -rf "$work"' EXIT
  tries=0
  until grep -q 'Kafka Server started' "$work/once.log" || [ $tries -ge 150 ] || ! kill -0 $kafka 2>/dev/null; do
    sleep 0.2
    tries=$((tries + 1))
  done
  kill $kafka 2>/dev/null || true
  wait $kafka || true
  [ ! -f "$folder/kafka.jsa" ] || echo "\"-XX:SharedArchiveFile=$folder/kafka.jsa\"" >>"$folder/java.args"
}

ensure_java
# The archive fits only the Java that wrote it, and holds paths.
stamp="$version $log4j_version $folder $(java -version 2>&1 | cksum) $(cksum <"$script")"
if ! is_installed "$folder" "$stamp"; then
  ensure_maven
  say "Installing Kafka $version for tests."
  port=$((20000 + $$ % 10000))
  rm -rf "$folder"
  mkdir -p "$folder"
  fetch
  write_logging
  write_arguments
  write_formatted
  write_archive
  echo "$stamp" >"$folder/stamp"
fi
echo "$folder"
