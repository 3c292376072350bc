//! What every process of a test does: `mpirun -n N comm-check` says `right` once per process.
//!
//! `comm-check abort` ends in another way: process 1 gives up, and the others wait for it.

fn main() {
    let comm = sae_comm::world().expect("started by mpirun");
    let (rank, ranks) = (comm.rank(), comm.ranks());
    if std::env::args().nth(1).as_deref() == Some("abort") {
        if rank == 1 {
            comm.abort(7);
        }
        comm.gather(&[0.0]);
        println!("too far");
        return;
    }
    // Messages of every length, some empty: from r to q there are r + 2 q numbers, each 100 r + q.
    let message = |from: usize, to: usize| vec![(100 * from + to) as f32; from + 2 * to];
    let got = comm.exchange((0..ranks).map(|to| message(rank, to)).collect());
    let wanted: Vec<Vec<f32>> = (0..ranks).map(|from| message(from, rank)).collect();
    assert_eq!(got, wanted);

    let of = |rank: usize| vec![rank as f32; rank * 3];
    assert_eq!(
        comm.gather(&of(rank)),
        (0..ranks).map(of).collect::<Vec<_>>()
    );
    let bytes = |rank: usize| vec![rank as u8; 5 - rank.min(5)];
    let all: Vec<Vec<u8>> = (0..ranks).map(bytes).collect();
    assert_eq!(comm.gather_bytes(&bytes(rank)), all);
    assert_eq!(comm.broadcast(vec![rank as u8 + 9; 4 * (rank + 1)]), [9; 4]);

    // nothing at all, and bytes of one process alone
    assert_eq!(comm.gather_bytes(b""), vec![Vec::new(); ranks]);
    let last: &[u8] = if rank + 1 == ranks { b"last" } else { b"" };
    let all = comm.gather_bytes(last);
    assert!(all[..ranks - 1].iter().all(Vec::is_empty) && all[ranks - 1] == b"last");
    assert_eq!(comm.broadcast(Vec::new()), []);
    assert_eq!(
        comm.exchange(vec![Vec::new(); ranks]),
        vec![Vec::<f32>::new(); ranks]
    );

    let exchanged: usize = (0..ranks)
        .filter(|to| *to != rank)
        .map(|to| rank + 2 * to)
        .sum();
    let gathered = (ranks - 1) * (4 * rank * 3 + bytes(rank).len() + last.len());
    let broadcast = if rank == 0 { (ranks - 1) * 4 } else { 0 };
    assert_eq!(comm.sent(), (4 * exchanged + gathered + broadcast) as u64);
    println!("right");
}
