#include "textflag.h"

// func sumVectors(b *byte, n int) (all, upper uint64)
//
// Four vectors of 32 bytes a turn, which is a block. Each 64-bit lane is added
// as it is, and its upper half by itself.
TEXT ·sumVectors(SB), NOSPLIT, $0-32
	MOVQ b+0(FP), SI
	MOVQ n+8(FP), CX
	VPXOR Y0, Y0, Y0
	VPXOR Y1, Y1, Y1
	VPXOR Y2, Y2, Y2
	VPXOR Y3, Y3, Y3

loop:
	VMOVDQU (SI), Y4
	VMOVDQU 32(SI), Y5
	VMOVDQU 64(SI), Y6
	VMOVDQU 96(SI), Y7
	VPADDQ  Y4, Y0, Y0
	VPADDQ  Y5, Y1, Y1
	VPADDQ  Y6, Y0, Y0
	VPADDQ  Y7, Y1, Y1
	VPSRLQ  $32, Y4, Y4
	VPSRLQ  $32, Y5, Y5
	VPSRLQ  $32, Y6, Y6
	VPSRLQ  $32, Y7, Y7
	VPADDQ  Y4, Y2, Y2
	VPADDQ  Y5, Y3, Y3
	VPADDQ  Y6, Y2, Y2
	VPADDQ  Y7, Y3, Y3
	ADDQ    $128, SI
	SUBQ    $128, CX
	JNZ     loop

	VPADDQ       Y1, Y0, Y0
	VPADDQ       Y3, Y2, Y2
	VEXTRACTI128 $1, Y0, X1
	VEXTRACTI128 $1, Y2, X3
	VPADDQ       X1, X0, X0
	VPADDQ       X3, X2, X2
	VPSHUFD      $0x4e, X0, X1
	VPSHUFD      $0x4e, X2, X3
	VPADDQ       X1, X0, X0
	VPADDQ       X3, X2, X2
	VMOVQ        X0, AX
	VMOVQ        X2, BX
	VZEROUPPER
	MOVQ AX, all+16(FP)
	MOVQ BX, upper+24(FP)
	RET
