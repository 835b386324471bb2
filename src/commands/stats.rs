//! `barmanfs stats`.

use barmanfs_catalog::{ServerStats, Sizes, Stats};

use super::App;
use crate::cli::inspect::StatsArgs;
use crate::error::{Error, Outcome};
use crate::output::{self, Align, Cell, Style, Table};

/// Runs the command.
pub(crate) fn run(app: &mut App, args: &StatsArgs) -> Result<Outcome, Error> {
    let repository = app.repository()?;
    let mut stats = repository.stats()?;
    if args.server != super::ALL {
        let server = app.known_server(&repository, &args.server)?;
        stats.servers.retain(|stats| stats.server == server);
    }
    if args.json.json {
        app.out.json(&stats)?;
        return Ok(Outcome::Done);
    }
    app.out.table(&table(&stats))?;
    let (packs, bytes) = (
        output::count(stats.packs, "pack"),
        output::bytes(stats.pack_bytes),
    );
    app.out
        .line(format_args!("\nThe repository has {packs} of {bytes}"))?;
    app.out
        .line("Each chunk counts for the oldest backup that has it; 'Size' is what a copy would take")?;
    Ok(Outcome::Done)
}

fn table(stats: &Stats) -> Table {
    let mut table = Table::new(&[
        ("Server", Align::Left),
        ("What", Align::Left),
        ("Size", Align::Right),
        ("Unique", Align::Right),
        ("Stored", Align::Right),
        ("Dedup", Align::Right),
        ("Compression", Align::Right),
    ]);
    for server in &stats.servers {
        rows(&mut table, server);
    }
    // With a single server, its own row is the total.
    if stats.servers.len() > 1 {
        row(&mut table, "all", "total", &stats.total, Style::Bold);
    }
    table
}

fn rows(table: &mut Table, server: &ServerStats) {
    let name = server.server.as_str();
    for backup in &server.backups {
        row(table, name, &backup.id.to_string(), &backup.sizes, Style::Plain);
    }
    row(
        table,
        name,
        &format!("{} WAL files", server.wal_files),
        &server.wal,
        Style::Plain,
    );
    row(table, name, "total", &server.total, Style::Bold);
}

fn row(table: &mut Table, server: &str, what: &str, sizes: &Sizes, style: Style) {
    let times = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.1}"));
    let cells = [
        server.to_owned(),
        what.to_owned(),
        output::bytes(sizes.logical_bytes),
        output::bytes(sizes.unique_bytes),
        output::bytes(sizes.stored_bytes),
        times(sizes.dedup_ratio()),
        times(sizes.compression_ratio()),
    ];
    table.row(cells.map(|text| Cell::styled(text, style)));
}
