//! The PTX of these tests, small enough to be read at a glance.

/// `add(input, output, amount)`: adds to numbers, one a thread.
/// `twice(input, output)`: doubles numbers, one a thread.
/// `stray(output)`: writes far beyond its output.
/// `tile()`: has 40 KiB of shared memory of its own.
/// `bounded()`: takes at most 64 threads. `exact()`: takes 32 threads.
pub(crate) const KERNELS: &str = r#"
.version 8.0
.target sm_80
.address_size 64

.visible .entry add(
	.param .u64 add_param_0,
	.param .u64 add_param_1,
	.param .u32 add_param_2
)
{
	.reg .b32 	%r<7>;
	.reg .b64 	%rd<8>;

	ld.param.u64 	%rd1, [add_param_0];
	cvta.to.global.u64 	%rd2, %rd1;
	ld.param.u64 	%rd3, [add_param_1];
	cvta.to.global.u64 	%rd4, %rd3;
	ld.param.u32 	%r1, [add_param_2];
	mov.u32 	%r2, %ctaid.x;
	mov.u32 	%r3, %ntid.x;
	mov.u32 	%r4, %tid.x;
	mad.lo.s32 	%r5, %r2, %r3, %r4;
	mul.wide.u32 	%rd5, %r5, 4;
	add.s64 	%rd6, %rd2, %rd5;
	add.s64 	%rd7, %rd4, %rd5;
	ld.global.u32 	%r6, [%rd6];
	add.s32 	%r6, %r6, %r1;
	st.global.u32 	[%rd7], %r6;
	ret;
}

.visible .entry twice(
	.param .u64 twice_param_0,
	.param .u64 twice_param_1
)
{
	.reg .b32 	%r<3>;
	.reg .b64 	%rd<8>;

	ld.param.u64 	%rd1, [twice_param_0];
	cvta.to.global.u64 	%rd2, %rd1;
	ld.param.u64 	%rd3, [twice_param_1];
	cvta.to.global.u64 	%rd4, %rd3;
	mov.u32 	%r1, %tid.x;
	mul.wide.u32 	%rd5, %r1, 4;
	add.s64 	%rd6, %rd2, %rd5;
	add.s64 	%rd7, %rd4, %rd5;
	ld.global.u32 	%r2, [%rd6];
	shl.b32 	%r2, %r2, 1;
	st.global.u32 	[%rd7], %r2;
	ret;
}

.visible .entry stray(
	.param .u64 stray_param_0
)
{
	.reg .b32 	%r<2>;
	.reg .b64 	%rd<3>;

	ld.param.u64 	%rd1, [stray_param_0];
	cvta.to.global.u64 	%rd2, %rd1;
	mov.u32 	%r1, 7;
	st.global.u32 	[%rd2+4096], %r1;
	ret;
}

.visible .entry tile()
{
	.shared .align 16 .b8 tile_memory[40960];

	ret;
}

.visible .entry bounded()
.maxntid 64, 1, 1
{
	ret;
}

.visible .entry exact()
.reqntid 32, 1, 1
{
	ret;
}
"#;
