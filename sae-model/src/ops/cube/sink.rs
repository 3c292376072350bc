//! The screening product on tensor cores: cubek's matrix product, whose epilogue offers scores instead of storing them.
//!
//! CubeK lets a product write to any view. This one has no memory behind it: what is written is compared with the row's bound, and
//! candidates are appended, as `screen` in `product.rs` does. So `[B, M]` is never stored here, either, and the product may be made
//! of TF32 or bf16 numbers: its margin is wider, and what is selected is the same.

use burn::tensor::DType;
use burn_cubecl::kernel::cast;
use burn_cubecl::tensor::CubeTensor;
use cubecl::client::Client;
use cubecl::ir::{AddressType, ElemType, FloatKind};
use cubecl::prelude::barrier::BarrierExpand;
use cubecl::prelude::*;
use cubecl::std::tensor::layout::{Coords1d, VirtualLayout};
use cubecl::std::tensor::{
    View, ViewMut, ViewOperations, ViewOperationsExpand, ViewOperationsMut, ViewOperationsMutExpand,
};
use cubecl::zspace::{Shape, Strides};
use cubek_matmul::definition::{AvailableVectorSizes, MatmulGlobalElems, MatmulProblem};
use cubek_matmul::multi_level::args::{BatchedCoords, MatmulArgs};
use cubek_matmul::multi_level::components::global::memory::{
    GlobalLayout, GlobalLayoutConfig, GlobalLayoutLaunch, NoopLayout,
};
use cubek_matmul::multi_level::components::tile::TileMatmulKind;
use cubek_matmul::multi_level::definition::Blueprint;
use cubek_matmul::multi_level::routines::batch::double_buffering::{
    CyclicDoubleBufferingAlgorithm, DoubleBufferingArgs,
};
use cubek_matmul::multi_level::routines::batch::simple_unit::SimpleUnitAlgorithm;
use cubek_matmul::multi_level::{BatchMatmulRoutine, launch_kernel};
use cubek_matmul::routine::BlueprintStrategy;

use super::product::COLUMNS;
use super::units::is_non_finite;
use crate::ops::precision::Precision;

/// Where scores go: `screen`'s buffers.
#[derive(CubeType, CubeLaunch, Clone)]
#[expand(derive(Clone))]
pub(super) struct Sink {
    table: OwnedTensor<f32>,
    norms: OwnedTensor<f32>,
    bounds: OwnedTensor<f32>,
    counts: OwnedTensor<Atomic<u32>>,
    values: OwnedTensor<f32>,
    indices: OwnedTensor<u32>,
    rows: u32,
    /// Latents of the product, and the first of them.
    columns: u32,
    first: u32,
    capacity: u32,
    #[cube(comptime)]
    vector: usize,
}

/// Offers the scores at a position of the product.
#[cube]
fn offer<E: CubePrimitive>(sink: &mut Sink, pos: usize, value: E) {
    let value = Vector::<f32, E::Size>::cast_from(value);
    let position = pos as u32 * value.vector_size() as u32;
    let row = position / sink.columns;
    let column = position % sink.columns;
    let norm = sink.norms[row as usize];
    let bound = sink.bounds[row as usize];
    if !is_non_finite(norm) {
        #[unroll]
        for i in 0..value.vector_size() {
            let latent = sink.first + column + i as u32;
            let at = (latent * COLUMNS) as usize;
            let z = value.extract(i) + sink.table[at];
            let e = norm * sink.table[at + 1] + sink.table[at + 2];
            if z + e > bound || is_non_finite(z) {
                let place = sink.counts[row as usize].fetch_add(1);
                if place < sink.capacity {
                    let to = (row * sink.capacity + place) as usize;
                    sink.values[to] = z - e;
                    sink.indices[to] = latent;
                }
            }
        }
    }
}

/// A sink is written to and never read.
const NEVER: &str = "a sink of scores is only written to";

impl<E: CubePrimitive> ViewOperations<E, Coords1d> for Sink {}
impl<E: CubePrimitive> ViewOperationsExpand<E, Coords1d> for SinkExpand {
    fn __expand_read_method(&self, _: &Scope, _: NativeExpand<usize>) -> E::ExpandType {
        unreachable!("{NEVER}")
    }
    fn __expand_read_checked_method(&self, _: &Scope, _: NativeExpand<usize>) -> E::ExpandType {
        unreachable!("{NEVER}")
    }
    fn __expand_read_masked_method(
        &self,
        _: &Scope,
        _: NativeExpand<usize>,
        _: E::ExpandType,
    ) -> E::ExpandType {
        unreachable!("{NEVER}")
    }
    fn __expand_read_unchecked_method(&self, _: &Scope, _: NativeExpand<usize>) -> E::ExpandType {
        unreachable!("{NEVER}")
    }
    fn __expand_as_linear_slice_method(
        &self,
        _: &Scope,
        _: NativeExpand<usize>,
        _: NativeExpand<usize>,
    ) -> &SliceExpand<E> {
        unreachable!("{NEVER}")
    }
    fn __expand_tensor_map_load_method(
        &self,
        _: &Scope,
        _: &BarrierExpand,
        _: &mut SliceExpand<E>,
        _: NativeExpand<usize>,
    ) {
        unreachable!("{NEVER}")
    }
    fn __expand_shape_method(&self, scope: &Scope) -> NativeExpand<usize> {
        0usize.into_expand(scope)
    }
    fn __expand_is_in_bounds_method(
        &self,
        scope: &Scope,
        _: NativeExpand<usize>,
    ) -> NativeExpand<bool> {
        true.into_expand(scope)
    }
}
impl<E: CubePrimitive> ViewOperationsMut<E, Coords1d> for Sink {}
impl<E: CubePrimitive> ViewOperationsMutExpand<E, Coords1d> for SinkExpand {
    fn __expand_write_method(&self, scope: &Scope, pos: NativeExpand<usize>, value: E::ExpandType) {
        offer::expand::<E>(scope, &mut self.clone(), pos, value);
    }
    fn __expand_write_checked_method(
        &self,
        scope: &Scope,
        pos: NativeExpand<usize>,
        value: E::ExpandType,
    ) {
        offer::expand::<E>(scope, &mut self.clone(), pos, value);
    }
    fn __expand_as_linear_slice_mut_method(
        &self,
        _: &Scope,
        _: NativeExpand<usize>,
        _: NativeExpand<usize>,
    ) -> &mut SliceExpand<E> {
        unreachable!("{NEVER}")
    }
    fn __expand_tensor_map_store_method(
        &self,
        _: &Scope,
        _: &SliceExpand<E>,
        _: NativeExpand<usize>,
    ) {
        unreachable!("{NEVER}")
    }
}
impl Vectorized for Sink {}
impl VectorizedExpand for SinkExpand {
    fn __expand_vector_size_method(&self, _: &Scope) -> VectorSize {
        self.vector
    }
}

/// A product into a [`Sink`].
#[derive(Clone)]
pub(super) struct SinkArgs;

/// The factors of a product.
#[derive(CubeLaunch, CubeType, Clone)]
#[expand(derive(Clone))]
pub(super) struct Factors<L: CubePrimitive, R: CubePrimitive> {
    lhs: View<'static, L, BatchedCoords>,
    rhs: View<'static, R, BatchedCoords>,
}

/// What a product holds while it runs.
#[derive(CubeType)]
pub(super) struct SinkState<L: CubePrimitive, R: CubePrimitive> {
    factors: Factors<L, R>,
    sink: Sink,
    #[cube(comptime)]
    layout: GlobalLayoutConfig,
}

#[cube]
impl MatmulArgs for SinkArgs {
    type Output<EO: CubePrimitive> = Sink;
    type Input<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive> = Factors<Lhs, Rhs>;
    type Config = ();
    type State<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive> = SinkState<Lhs, Rhs>;

    fn init_state<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        input: &Self::Input<Lhs, Rhs, EO>,
        output: &mut Self::Output<EO>,
        _config: Self::Config,
        #[comptime] _lhs: GlobalLayoutConfig,
        #[comptime] _rhs: GlobalLayoutConfig,
        #[comptime] layout: GlobalLayoutConfig,
    ) -> Self::State<Lhs, Rhs, EO> {
        SinkState::<Lhs, Rhs> {
            factors: input.clone(),
            sink: output.clone(),
            layout,
        }
    }
    fn view_lhs<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        state: &Self::State<Lhs, Rhs, EO>,
    ) -> View<'_, Lhs, BatchedCoords> {
        state.factors.lhs
    }
    fn batch_lhs<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        _state: &Self::State<Lhs, Rhs, EO>,
        batch: usize,
    ) -> usize {
        batch
    }
    fn view_rhs<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        state: &Self::State<Lhs, Rhs, EO>,
    ) -> View<'_, Rhs, BatchedCoords> {
        state.factors.rhs
    }
    fn batch_rhs<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        _state: &Self::State<Lhs, Rhs, EO>,
        batch: usize,
    ) -> usize {
        batch
    }
    fn view_acc<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        _state: &Self::State<Lhs, Rhs, EO>,
    ) -> ComptimeOption<View<'_, EO, BatchedCoords>> {
        ComptimeOption::new_None()
    }
    fn batch_acc<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        _state: &Self::State<Lhs, Rhs, EO>,
        batch: usize,
    ) -> usize {
        batch
    }
    fn view_out<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        state: &Self::State<Lhs, Rhs, EO>,
    ) -> ViewMut<'_, EO, BatchedCoords> {
        let layout = GlobalLayout::new(
            VirtualLayout::new::<NoopLayout>(NoopLayout::new()),
            state.sink.rows,
            state.sink.columns,
            state.sink.columns as usize,
            1usize,
            state.sink.vector,
            1u32,
            state.layout,
        );
        ViewMut::new::<Sink, Coords1d>(state.sink.clone(), layout)
    }
    fn batch_out<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        _state: &Self::State<Lhs, Rhs, EO>,
        batch: usize,
    ) -> usize {
        batch
    }
    fn runtime_config<Lhs: CubePrimitive, Rhs: CubePrimitive, EO: CubePrimitive>(
        _state: &Self::State<Lhs, Rhs, EO>,
    ) -> Self::Config {
    }
}

/// A product to be screened: latents `first..last` of a dictionary, and where candidates go.
pub(super) struct Screened<'a> {
    /// `[B, d]` and `[M, d]`, of the precision's element.
    pub(super) queries: &'a CubeTensor,
    pub(super) dictionary: &'a CubeTensor,
    pub(super) table: &'a CubeTensor,
    pub(super) norms: &'a CubeTensor,
    pub(super) bounds: &'a CubeTensor,
    pub(super) counts: &'a CubeTensor,
    pub(super) values: &'a CubeTensor,
    pub(super) indices: &'a CubeTensor,
    pub(super) latents: (u32, u32),
    pub(super) room: u32,
}

/// Whether the device has tensor cores that multiply numbers of this precision and add them up in float32.
pub(super) fn multiplies(client: &Client, precision: Precision) -> bool {
    let of = |kind| ElemType::Float(kind);
    let element = match precision {
        Precision::F32 => return true,
        Precision::Tf32 => of(FloatKind::TF32),
        Precision::Bf16 => of(FloatKind::BF16),
    };
    let kinds = &client.properties().features.matmul.cmma;
    kinds.iter().any(|kind| {
        [kind.a_type, kind.b_type, kind.cd_type] == [element, element, of(FloatKind::F32)]
    })
}

/// A matrix in the element that products of this precision read. TF32 is float32 that tensor cores round themselves.
pub(super) fn in_precision(matrix: &CubeTensor, precision: Precision) -> CubeTensor {
    match precision {
        Precision::Bf16 => cast(matrix.clone(), DType::BF16),
        Precision::F32 | Precision::Tf32 => matrix.clone(),
    }
}

impl Screened<'_> {
    /// Screens, with the units' own arithmetic for float32 and tensor cores for the others.
    ///
    /// # Panics
    /// If the device has no tensor cores for the precision: see [`multiplies`].
    pub(super) fn launch(&self, precision: Precision) {
        match precision {
            Precision::F32 => self.product::<SimpleUnitAlgorithm>(BlueprintStrategy::default()),
            Precision::Tf32 | Precision::Bf16 => self.product::<CyclicDoubleBufferingAlgorithm>(
                BlueprintStrategy::Inferred(DoubleBufferingArgs {
                    specialized: false,
                    tile_matmul: TileMatmulKind::Cmma,
                }),
            ),
        }
    }

    fn product<A: BatchMatmulRoutine<()>>(&self, strategy: BlueprintStrategy<(), A>) {
        let client = &self.queries.client;
        let [rows, width] = super::dims(self.queries);
        let (first, columns) = (self.latents.0, (self.latents.1 - self.latents.0) as usize);
        let size = self.queries.dtype.size();
        let element = match self.queries.dtype {
            DType::BF16 => ElemType::Float(FloatKind::BF16),
            _ => ElemType::Float(FloatKind::F32),
        };
        let elements = MatmulGlobalElems {
            lhs: element,
            rhs: element,
            out: ElemType::Float(FloatKind::F32),
        };
        let from = (first as usize * width * size) as u64;
        let part = self.dictionary.handle.clone().offset_start(from);
        // SAFETY: both buffers hold the numbers of these shapes: the queries whole, of the dictionary `columns` rows from `first`.
        let (lhs, rhs) = unsafe {
            (
                TensorBinding::from_raw_parts(
                    self.queries.handle.clone(),
                    Strides::from(vec![width, 1]),
                    Shape::from(vec![rows, width]),
                ),
                TensorBinding::from_raw_parts(
                    part,
                    Strides::from(vec![1, width]), // [d, M], in place
                    Shape::from(vec![width, columns]),
                ),
            )
        };
        let problem = MatmulProblem::from_shapes_and_strides(
            lhs.shape.clone(),
            rhs.shape.clone(),
            Shape::from(vec![rows, columns]),
            lhs.strides.clone(),
            rhs.strides.clone(),
            Strides::from(vec![columns, 1]),
            elements,
            AddressType::U32,
            None,
            None,
        )
        .expect("the shapes of a product");
        let sizes = AvailableVectorSizes::from_type_sizes(client, size, size, 4)
            .filter_lhs_with_tensor(&problem.lhs_strides, &problem.lhs_shape, problem.lhs_layout)
            .filter_rhs_with_tensor(&problem.rhs_strides, &problem.rhs_shape, problem.rhs_layout)
            .filter_out_with_tensor(&problem.out_strides, &problem.out_shape)
            .pick_max()
            .expect("vectors of one number are always possible");
        let vector = sizes.out;
        let settings = A::device_settings(client, sizes);
        let chosen = A::expand_blueprint(&problem, &settings, &strategy)
            .and_then(|blueprint| A::prepare(&problem, &settings, blueprint))
            .unwrap_or_else(|error| {
                panic!("no product for {rows} x {width} x {columns}: {error:?}")
            });
        let view = |matrix: TensorBinding, size, config| {
            let layout = GlobalLayoutLaunch::from_handle(&matrix, size, config);
            cubecl::std::tensor::launch::ViewArg::new_tensor::<GlobalLayout>(
                matrix.into_tensor_arg(),
                layout,
            )
        };
        let factors = FactorsLaunch::new(
            view(
                lhs,
                chosen.vector_sizes.lhs,
                chosen.blueprint.lhs_global_layout_config(),
            ),
            view(
                rhs,
                chosen.vector_sizes.rhs,
                chosen.blueprint.rhs_global_layout_config(),
            ),
        );
        let flat = |tensor: &CubeTensor| tensor.clone().into_tensor_arg();
        let sink = SinkLaunch::new(
            flat(self.table),
            flat(self.norms),
            flat(self.bounds),
            flat(self.counts),
            flat(self.values),
            flat(self.indices),
            rows as u32,
            columns as u32,
            first,
            self.room,
            vector,
        );
        launch_kernel::<SinkArgs, A>(client, factors, sink, (), chosen)
            .unwrap_or_else(|error| panic!("a product that was prepared is launched: {error:?}"));
    }
}
