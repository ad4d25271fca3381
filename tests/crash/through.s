# A function without call frame information: no frame pointer, one saved register, one call.
    .text
    .globl through_assembly
    .type through_assembly, @function
through_assembly:
    pushq %rbx
    movq %rdi, %rax
    movq %rsi, %rdi
    movl %edx, %esi
    callq *%rax
    popq %rbx
    ret
    .size through_assembly, . - through_assembly
    .section .note.GNU-stack,"",@progbits
