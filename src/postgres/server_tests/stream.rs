//! Receives WAL, byte for byte, over a socket, TCP and TLS, and checks the effect of the reports on the
//! server.

use std::time::Duration;

use barmanfs_pg::wal_name::SegmentName;
use barmanfs_pg::{Lsn, SegmentSize, TimelineId};

use super::server::{PASSWORD, Server, installations};
use crate::postgres::{Connection, Mode, Replication, StreamEvent, StreamPosition, WalStream};

const SLOT: &str = "stream";
const TIMELINE: TimelineId = TimelineId(1);

#[test]
fn a_stream_brings_what_the_server_writes() {
    for bin in installations() {
        let server = Server::start(&bin);
        let tcp = format!(
            "host=127.0.0.1 port={} password='{}'",
            server.port,
            PASSWORD.replace('\'', "\\'")
        );
        let mut ways = vec![server.local(), format!("{tcp} user=scram_user sslmode=disable")];
        if server.has_tls {
            ways.push(format!("{tcp} user=tls_user sslmode=require"));
        }
        server
            .sql("SELECT pg_create_physical_replication_slot('stream', true)")
            .unwrap();
        for way in ways {
            let mut connection = server.connect(&way, Mode::Replication).unwrap();
            receive(&server, &mut connection);
            // The connection can be used for something else afterwards.
            connection.set_read_timeout(None).unwrap();
            connection.identify_system().unwrap();
        }
    }
}

fn receive(server: &Server, connection: &mut Connection) {
    let size = SegmentSize::DEFAULT;
    let start = connection
        .identify_system()
        .unwrap()
        .flush_lsn
        .segment_start(size);
    connection
        .set_read_timeout(Some(Duration::from_millis(200)))
        .unwrap();
    let Replication::Stream(mut stream) = connection.start_replication(Some(SLOT), TIMELINE, start).unwrap()
    else {
        panic!("the timeline has not ended");
    };
    let mut received = Vec::new();
    server.sql("CREATE TABLE IF NOT EXISTS t (n int); INSERT INTO t SELECT generate_series(1, 100000)");
    let flushed = flush_lsn(server);
    // More data arrives asynchronously, but all of it arrives.
    let mut ended_between_messages = false;
    while start.0 + (received.len() as u64) < flushed.0 {
        if let StreamEvent::Wal { start: at, bytes } = stream.next().unwrap() {
            assert_eq!(at.0, start.0 + received.len() as u64);
            received.extend_from_slice(bytes);
        }
        ended_between_messages |= !stream.has_more().unwrap();
    }
    assert!(ended_between_messages, "there was always more to come");
    assert_same(server, SegmentName::from_lsn(TIMELINE, start, size), &received);
    report(server, &mut stream, Lsn(start.0 + received.len() as u64));
    stream.stop().unwrap();
}

fn flush_lsn(server: &Server) -> Lsn {
    server
        .sql("SELECT pg_current_wal_flush_lsn()")
        .unwrap()
        .parse()
        .unwrap()
}

fn assert_same(server: &Server, segment: SegmentName, received: &[u8]) {
    let mut written = Vec::new();
    let mut next = segment;
    while written.len() < received.len() {
        written.extend(std::fs::read(server.path(&format!("data/pg_wal/{next}"))).unwrap());
        next = next.next(SegmentSize::DEFAULT);
    }
    assert!(
        written[..received.len()] == *received,
        "other bytes than in pg_wal"
    );
}

/// The slot releases WAL that is reported as flushed, and a server that is asked answers.
fn report(server: &Server, stream: &mut WalStream<'_>, position: Lsn) {
    let position = StreamPosition {
        written: position,
        flushed: position,
    };
    stream.report(position, true).unwrap();
    let mut answered = false;
    for _ in 0..100 {
        answered |= matches!(stream.next().unwrap(), StreamEvent::Keepalive { .. });
        // Compared as a number: PostgreSQL 19 writes it with leading zeros.
        let slot: Lsn = server
            .sql("SELECT restart_lsn FROM pg_replication_slots WHERE slot_name = 'stream'")
            .unwrap()
            .parse()
            .unwrap();
        if answered && slot == position.flushed {
            return;
        }
    }
    panic!("answered: {answered}, and the slot has not moved");
}

#[test]
fn wal_that_a_server_cannot_send_is_an_error_on_a_usable_connection() {
    for bin in installations() {
        let server = Server::start(&bin);
        let mut connection = server.connect(&server.local(), Mode::Replication).unwrap();
        let refused = connection
            .start_replication(Some("absent"), TIMELINE, Lsn(0x100_0000))
            .unwrap_err();
        assert_eq!(refused.sqlstate(), Some("42704"), "{refused}");
        let error = match connection.start_replication(None, TIMELINE, Lsn(0x1000_0000_0000)) {
            Ok(Replication::Stream(mut stream)) => stream.next().unwrap_err(),
            Ok(other) => panic!("{other:?}"),
            Err(error) => error,
        };
        assert!(error.to_string().contains("ahead of"), "{error}");
        connection.identify_system().unwrap();
    }
}
