//! Many rows at once are described as one after the other.

use sae_data::DataError;

use super::*;

/// 3,000 documents of 64 tokens; every 97th row has a norm beyond 2. The integers lie in a file beside the rows.
fn long(dir: &Path) -> ActivationData {
    let rows = 3000 * 64;
    let norms: Vec<f32> = (0..rows)
        .map(|row| if row % 97 == 5 { 3.0 } else { 1.0 })
        .collect();
    let path = dir.join("x.npy");
    npy(&path, "<f4", &[3000, 64, 1], &f32_bytes(&norms));
    let ids: Vec<u8> = (0..rows as i64)
        .flat_map(|row| (row * 7919 % 5000).to_le_bytes())
        .collect();
    write(
        &dir.join("x.tokens.safetensors"),
        &[("tokens", Dtype::I64, vec![3000, 64], ids)],
    );
    let labels: Vec<u8> = (0..rows as i64)
        .flat_map(|row| (row % 10).to_le_bytes())
        .collect();
    npy(&dir.join("labels.npy"), "<i8", &[rows], &labels);
    let options = Options {
        labels: Some(dir.join("labels.npy")),
        ..Options::default()
    };
    ActivationData::open(&path, &options).unwrap()
}

#[test]
fn many_rows_at_once_are_as_one_after_the_other() {
    let dir = tempfile::tempdir().unwrap();
    let data = long(dir.path());
    let (train, held_out) = data.split_fraction(0.3, 2).unwrap();
    for side in [data, train, held_out] {
        let side = side.within(2.0, |_| {}).unwrap();
        let meanings = side.meanings().unwrap();
        // close together, far apart, twice, and back again
        let steps = [1, 1, 0, 9, 700, 4000, 4200, 1, 30_000, 2, 90_000, 5];
        let mut rows: Vec<usize> = (0..200)
            .scan(0, |row, i| {
                *row = (*row + steps[i % steps.len()]) % side.rows();
                Some(*row)
            })
            .collect();
        rows.extend([side.rows() - 1, 3, 2, 1, 0]);
        let mut next = rows.iter();
        let visited = meanings.visit(&rows, [10, 5], |row, meaning, around| {
            assert_eq!(Some(&row), next.next());
            assert_eq!(meaning, meanings.row(row)?);
            assert_eq!(around, meanings.around(row, 10, 5)?);
            let alone = around.map(|around| around.rows.iter().map(|of| of.row).collect());
            assert_eq!(meanings.rows_around(row, 10, 5), alone);
            Ok::<_, DataError>(())
        });
        visited.unwrap();
        assert_eq!(next.next(), None);
    }
}
