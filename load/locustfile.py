"""Sends the records of a generated file to /course, each once, as the old pipeline's load test did.

  capstan generate courses 10000 --output courses.json
  locust -f load/locustfile.py --headless -H http://127.0.0.1:8080 -u 50 -r 10

It ends when all records were sent. The environment decides:

  RECORDS_FILE  a JSON array, or a record a line (courses.json)
  WAIT          seconds a user waits between records, as least-most (0.1-0.9)
  TOKEN         sent with each record where /course is not open to all
"""

import json
import os
from collections import deque

import gevent
from locust import HttpUser, between, events, task


def read_records(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if text.lstrip().startswith("["):
        return deque(json.loads(text))
    return deque(json.loads(line) for line in text.splitlines() if line.strip())


records = deque()


@events.test_start.add_listener
def fill(environment, **_):
    """Anew for each test that is started from Locust's page."""
    path = os.environ.get("RECORDS_FILE", "courses.json")
    records.clear()
    try:
        records.extend(read_records(path))
    except FileNotFoundError:
        raise SystemExit(f"There is no {path}: capstan generate courses 10000 --output {path}")
    environment.under_way = 0
    environment.test = object()
    gevent.spawn(end_when_done, environment, environment.test)


def end_when_done(environment, test):
    """Whoever waits for an answer gets it, so that every record that was sent is counted."""
    while records or environment.under_way > 0:
        gevent.sleep(0.1)
        if environment.test is not test:
            return
    # With Locust's page, whoever looks at it starts the next test.
    if environment.web_ui:
        environment.runner.stop()
    else:
        environment.runner.quit()


class CourseUser(HttpUser):
    wait_time = between(*(float(each) for each in os.environ.get("WAIT", "0.1-0.9").split("-")))

    def on_start(self):
        if token := os.environ.get("TOKEN"):
            self.client.headers["Authorization"] = f"Bearer {token}"

    @task
    def add_course(self):
        if not records:
            return
        record = records.popleft()
        self.environment.under_way += 1
        try:
            self.client.post("/course", json=record)
        finally:
            self.environment.under_way -= 1
